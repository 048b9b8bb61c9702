// The engine on a GPU is the engine on the CPU: losses, every gradient, updates and checkpoints, at one rank and at layouts whose
// ranks share the GPU.
#include <filesystem>

#include "core/device/cuda_device.h"
#include "parallel/comm/agreement.h"
#include "tests/trainer/layout_support.h"
#include "tests/trainer/muon_support.h"
#include "trainer/checkpoint/checkpoint.h"

namespace lamina {
namespace {

constexpr double fp32_tolerance = 1e-5;  // DESIGN's, of any two orders of the same sums

Config on(const char* device, Config c) {
  c.run.device = device;
  return c;
}

Config kimi(Residual residual, Precision precision, int64_t layers = 3) {
  Config c = tiny_kimi_config(residual, layers, 1);
  c.train.precision = precision;
  c.train.global_batch_size = 2;
  c.data.seq_len = 7;
  return c;
}

Config dense(Residual residual, Precision precision, int64_t layers = 4) {
  Config c = tiny_config(residual, layers, 2);
  c.train.precision = precision;
  c.train.global_batch_size = 2;
  c.data.seq_len = 7;
  return c;
}

void expect_close(const StepResult& found, const StepResult& expected, double tolerance, const std::string& what) {
  const auto [difference, name] = worst_difference(found.gradients, expected.gradients);
  EXPECT_EQ(found.gradients.size(), expected.gradients.size()) << what;
  EXPECT_LE(difference, tolerance) << name << " of " << what;
  EXPECT_NEAR(found.loss, expected.loss, tolerance * expected.loss) << what;
  EXPECT_NEAR(found.forward_loss, expected.forward_loss, tolerance * expected.forward_loss) << what;
  EXPECT_NEAR(found.aux_loss, expected.aux_loss, tolerance * (1e-3 + expected.aux_loss)) << what;
  EXPECT_EQ(found.expert_counts, expected.expert_counts) << what;
}

TEST(GpuEngine, StepEqualsTheCpus) {
  ASSERT_EQ(cuda::why_none(), "");
  for (const Residual residual : {Residual::standard, Residual::block_attnres, Residual::full_attnres}) {
    for (const bool has_experts : {false, true}) {
      Config c = has_experts ? kimi(residual, Precision::fp32) : dense(residual, Precision::fp32);
      for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::full}) {
        c.train.recompute = recompute;
        expect_close(run_step(on("cuda", c), 1), run_step(c, 1), fp32_tolerance,
                     fmt::format("residual {}, experts {}, recompute {}", static_cast<int>(residual), has_experts,
                                 static_cast<int>(recompute)));
      }
    }
  }
}

TEST(GpuEngine, VariantsEqualTheCpus) {
  Config c = kimi(Residual::block_attnres, Precision::fp32);
  c.data.document_mask = true;
  expect_close(run_step(on("cuda", c), 1), run_step(c, 1), fp32_tolerance, "documents");
  c.data.document_mask = false;
  c.model.gate_lower_bound = -5;
  c.model.q_lora_rank = 4;
  c.model.tie_word_embeddings = true;
  expect_close(run_step(on("cuda", c), 1), run_step(c, 1), fp32_tolerance, "gate, query rank, tied");
}

// In bf16 the two round at different places: neither may be much further from the truth than the other.
TEST(GpuEngine, Bf16IsAsCloseToTheTruthAsTheCpus) {
  for (const bool has_experts : {false, true}) {
    Config c =
        has_experts ? kimi(Residual::block_attnres, Precision::bf16) : dense(Residual::block_attnres, Precision::bf16);
    if (has_experts) c.model.num_experts_per_token = c.model.num_experts;  // no choice hangs on a rounding
    Config exact = c;
    exact.train.precision = Precision::fp64;
    const StepResult truth = run_step(exact, 1), cpu = run_step(c, 1), gpu = run_step(on("cuda", c), 1);
    const double cpu_error = worst_difference(cpu.gradients, truth.gradients).first;
    const auto [gpu_error, name] = worst_difference(gpu.gradients, truth.gradients);
    EXPECT_LE(gpu_error, 1.5 * cpu_error + 0x1p-8) << name << ", on the CPU " << cpu_error;
    EXPECT_NEAR(gpu.loss, truth.loss, 2e-2 * truth.loss);
  }
}

TEST(GpuEngine, LayoutsEqualOneRank) {
  const auto check = [](Config c, int pipeline, int stages, int data, int expert, ScheduleName schedule) {
    const StepResult one = run_step(on("cuda", c), 1);
    c.parallel.pipeline = pipeline;
    c.parallel.virtual_stages = stages;
    c.parallel.data = data;
    c.parallel.expert = expert;
    c.parallel.schedule = schedule;
    const StepResult found = run_step(on("cuda", c), pipeline * data);
    expect_close(found, one, fp32_tolerance,
                 fmt::format("pipeline {} x {} x data {} expert {}", pipeline, stages, data, expert));
  };
  Config c = kimi(Residual::block_attnres, Precision::fp32, 4);
  c.train.global_batch_size = 4;
  check(c, 2, 2, 1, 1, ScheduleName::interleaved_1f1b);
  check(c, 1, 1, 2, 2, ScheduleName::interleaved_1f1b);
  check(c, 2, 1, 2, 2, ScheduleName::one_f_one_b);
  c.train.recompute = Recompute::full;
  check(c, 2, 2, 1, 1, ScheduleName::zero_bubble);
  Config d = dense(Residual::full_attnres, Precision::fp32);
  d.train.global_batch_size = 4;
  check(d, 4, 1, 1, 1, ScheduleName::gpipe);
}

TEST(GpuEngine, UpdatesEqualTheCpus) {
  for (const OptimizerName name : {OptimizerName::adamw, OptimizerName::muon}) {
    Config c = kimi(Residual::block_attnres, Precision::fp32);
    c.train.global_batch_size = 4;
    c.train.optimizer.name = name;
    c.train.optimizer.qk_clip = name == OptimizerName::muon ? 0.01 : 0;  // every head is clipped
    c.train.optimizer.attn_res_lr_factor = 0.2;
    c.train.optimizer.groups = {{"lm_head.weight", 0.25, 0.0, OptimizerName::muon},
                                {"model.layers.1.*", 0.5, {}, {}},
                                {"*.o_proj.weight", {}, 0.5, OptimizerName::adamw}};
    const Training expected = train(c, {1, 1, 1});
    for (const RankLayout& layout : {RankLayout{1, 1, 1}, RankLayout{1, 2, 2}}) {
      const Training found = train(on("cuda", c), layout);
      for (size_t s = 0; s < expected.steps.size(); ++s) {
        const auto [difference, tensor] = worst_difference(found.steps[s].parameters, expected.steps[s].parameters);
        // AdamW divides by the gradient's size: where that is next to nothing a rounding decides the sign of a step of lr.
        EXPECT_LE(difference, name == OptimizerName::muon ? 5e-5 : 1e-4) << tensor << " after step " << s + 1;
      }
    }
  }
}

TEST(GpuEngine, SteadyStateAllocatesNothing) {
  const Config c = on("cuda", kimi(Residual::block_attnres, Precision::bf16));
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  MemoryLedger ledger;
  const auto comm = comm::make_staged_communicator(comm::make_self_communicator(), &ledger);
  Engine engine(c, *comm, &ledger);
  engine.initialise();
  int64_t allocations = 0;
  for (int64_t step = 1; step <= 4; ++step) {
    engine.accumulate_gradients(tokens, targets, 1.0);
    engine.update(step, 1e-3, 1.0, 1e-3);
    if (step == 3) allocations = ledger.num_allocations();
  }
  EXPECT_EQ(ledger.num_allocations(), allocations);
}

// Every wait leaves the GPU idle. Within a micro-batch there is none, but in fp32 one per layer of experts, for the sizes of its products.
// Of a step there are three: for what was observed, for the times of the actions, for the losses. The gradients' norm is one more, of
// however many tensors.
TEST(GpuEngine, WaitsAreCounted) {
  struct Waits {
    int64_t step = 0, norm = 0;
  };
  const auto waits_of = [](Config c, int64_t microbatches) {
    c.train.global_batch_size = microbatches;
    const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
    const auto comm = comm::make_staged_communicator(comm::make_self_communicator(), nullptr);
    Engine engine(on("cuda", c), *comm, nullptr);
    engine.initialise();
    engine.accumulate_gradients(tokens, targets, 1.0);  // books memory
    const Stream& stream = engine.context().stream;
    Waits waits;
    int64_t before = stream.num_waits();
    engine.accumulate_gradients(tokens, targets, 1.0);
    waits.step = stream.num_waits() - std::exchange(before, stream.num_waits());
    engine.owned_gradient_square();
    waits.norm = stream.num_waits() - before;
    return waits;
  };
  struct Case {
    bool has_experts;
    Precision precision;
    Recompute recompute;
    double qk_clip;
  };
  for (const auto& [has_experts, precision, recompute, qk_clip] :
       {Case{false, Precision::bf16, Recompute::none, 0}, Case{true, Precision::bf16, Recompute::none, 0},
        Case{true, Precision::bf16, Recompute::full, 100}, Case{true, Precision::fp32, Recompute::full, 0}}) {
    Config c = has_experts ? kimi(Residual::block_attnres, precision) : dense(Residual::block_attnres, precision);
    int64_t layers = 0;
    for (int64_t layer = 0; layer < c.model.num_hidden_layers; ++layer) layers += c.model.is_moe(layer) ? 1 : 0;
    ASSERT_EQ(layers > 1, has_experts);
    c.train.optimizer.name = OptimizerName::muon;
    c.train.recompute = recompute;
    c.train.optimizer.qk_clip = qk_clip;
    SCOPED_TRACE(fmt::format("experts {}, precision {}, recompute {}, clip {}", has_experts,
                             static_cast<int>(precision), static_cast<int>(recompute), qk_clip));
    const int64_t observed = has_experts || qk_clip > 0 ? 1 : 0;
    const int64_t per_microbatch = precision == Precision::fp32 ? layers : 0;
    for (const int64_t microbatches : {1, 3}) {
      const Waits waits = waits_of(c, microbatches);
      EXPECT_EQ(waits.step, microbatches * per_microbatch + 2 + observed) << microbatches;
      EXPECT_EQ(waits.norm, 1);
    }
  }
}

TEST(GpuEngine, StepsRepeatBitForBit) {
  const Config c = on("cuda", kimi(Residual::block_attnres, Precision::bf16));
  const StepResult first = run_step(c, 1), second = run_step(c, 1);
  EXPECT_EQ(first.gradients, second.gradients);
  EXPECT_EQ(first.loss, second.loss);
}

// A checkpoint is the same file whatever made it, and continues on the other device.
TEST(GpuEngine, CheckpointsTravelBetweenDevices) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(testing::TempDir()) / fmt::format("gpu-checkpoint-{}", ::getpid());
  Config c = kimi(Residual::block_attnres, Precision::bf16);
  c.train.optimizer.name = OptimizerName::muon;
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  const auto comm = comm::make_staged_communicator(comm::make_self_communicator(), nullptr);
  Engine gpu(on("cuda", c), *comm, nullptr), again(on("cuda", c), *comm, nullptr), cpu(c, *comm, nullptr);
  const auto step = [&](Engine& engine, int64_t number) {
    engine.accumulate_gradients(tokens, targets, 1.0);
    engine.update(number, 1e-2, 1.0, 1e-3);
  };
  const auto state_of = [&](Engine& engine) {
    engine.context().stream.synchronize();
    Tensors state;
    for (const TensorPiece& piece : engine.optimizer().primary_state())
      add_range(state, piece.name, piece.shape, piece.begin, piece.end, piece.data);
    return state;
  };
  gpu.initialise();
  step(gpu, 1);
  gpu.context().stream.synchronize();
  CheckpointInfo info;
  info.step = 1;
  info.config_yaml = "{}";
  save_checkpoint(folder, info, gpu.optimizer().primary_state(), *comm, 1);
  for (Engine* other : {&again, &cpu}) {
    load_checkpoint(folder / "step-00000001", other->optimizer().state());
    other->publish();
    EXPECT_EQ(state_of(*other), state_of(gpu));
  }
  step(gpu, 2);
  step(again, 2);
  EXPECT_EQ(state_of(again), state_of(gpu));
  fs::remove_all(folder);
}

TEST(GpuEngine, RefusesTokensOutsideTheVocabulary) {
  const Config c = on("cuda", dense(Residual::standard, Precision::fp32));
  const auto comm = comm::make_staged_communicator(comm::make_self_communicator(), nullptr);
  Engine engine(c, *comm, nullptr);
  engine.initialise();
  std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = tokens;
  targets[3] = static_cast<int32_t>(c.model.vocab_size);
  EXPECT_THROW(engine.accumulate_gradients(tokens, targets, 1.0), InternalError);
}

}  // namespace
}  // namespace lamina
