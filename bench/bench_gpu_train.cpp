// Training steps on a GPU: model FLOPs (model/cost_model.h) over the rate of a large bf16 product in the same run, and over the
// data sheet's peak when given; and what is predicted for a device (model/plan.h): operation by operation, and each pass beside its
// measurement. bench_gpu_ops measures single operations.
//   dense     about 1 B parameters, standard residual: what bench/torch_dense.py trains with PyTorch
//   attnres   the same with Block AttnRes at 10 sources, steps taken in turn
//   kimi      layers of Kimi Linear 48B's shapes, as many layers and experts as fit into one GPU, with its router
//   bench_gpu_train [--peak-tflops 989] [--only dense|attnres|kimi] [--steps N] [--device FILE] [--small]
//     --device  configs/devices/*.yaml or a file like those: what the predictions are for; without it there are none
#include <chrono>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "bench/gpu_support.h"
#include "model/plan.h"
#include "parallel/comm/staged.h"
#include "parallel/comm/thread.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

struct Options {
  double peak_tflops = 0;
  std::string only, device;
  int steps = 7;
  bool small = false;
};

Config dense_config(Residual residual, bool small) {
  Config c;
  c.run.device = "cuda";
  c.model.vocab_size = small ? 64 : 32768;
  c.model.hidden_size = small ? 32 : 2048;
  c.model.num_hidden_layers = small ? 3 : 18;
  c.model.residual = residual;
  c.model.attn_res_block_size = small ? 1 : 2;  // 9 blocks and the embedding: 10 sources
  c.model.num_attention_heads = small ? 2 : 16;
  c.model.kv_lora_rank = small ? 16 : 512;
  c.model.qk_nope_head_dim = small ? 16 : 128;
  c.model.qk_rope_head_dim = small ? 8 : 64;
  c.model.v_head_dim = small ? 16 : 128;
  c.model.intermediate_size = small ? 64 : 5632;
  c.data.seq_len = small ? 32 : 4096;
  c.train.micro_batch_size = small ? 1 : 4;
  c.train.global_batch_size = c.train.micro_batch_size;
  c.train.precision = Precision::bf16;
  c.train.optimizer.lr = 1e-4;
  c.train.optimizer.name = OptimizerName::adamw;
  return c;
}

// Four layers in the 48B's order of mixers, the first one dense; 64 of its 256 experts are 6 GB of weights, 20 with gradients and
// state, per layer.
Config kimi_config(bool small) {
  Config c = dense_config(Residual::block_attnres, small);
  if (!small) {
    c.model.hidden_size = 2304;
    c.model.num_attention_heads = 32;
    c.model.intermediate_size = 9216;
    c.data.seq_len = 4096;
    c.train.micro_batch_size = 2;
    c.train.global_batch_size = 2;
  }
  c.model.num_hidden_layers = 5;
  c.model.mixers = {Mixer::kda, Mixer::kda, Mixer::kda, Mixer::mla, Mixer::kda};
  c.model.linear_num_heads = small ? 2 : 32;
  c.model.linear_head_dim = small ? 16 : 128;
  c.model.num_experts = small ? 4 : 64;
  c.model.num_experts_per_token = small ? 2 : 8;
  c.model.first_k_dense_replace = 1;
  c.model.num_shared_experts = 1;
  c.model.moe_intermediate_size = small ? 16 : 1024;
  c.model.routed_scaling_factor = 2.446;
  c.model.aux_loss_alpha = 1e-4;
  c.train.recompute = Recompute::selective;
  return c;
}

class Run {
 public:
  explicit Run(const Config& config)
      : config_(config),
        comm_(comm::make_staged_communicator(comm::make_self_communicator(), &ledger_)),
        engine_(config, *comm_, &ledger_) {
    engine_.initialise();
    const CounterRng rng(1, "bench");
    tokens_.resize(static_cast<size_t>(config.train.global_batch_size * config.data.seq_len));
    targets_ = tokens_;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      tokens_[i] = static_cast<int32_t>(rng.below(2 * i, static_cast<uint64_t>(config.model.vocab_size)));
      targets_[i] = static_cast<int32_t>(rng.below(2 * i + 1, static_cast<uint64_t>(config.model.vocab_size)));
    }
  }
  // The whole step: gradients, their norm, the update. Seconds by the host's clock, the GPU idle before and after.
  double step() {
    using Clock = std::chrono::steady_clock;
    engine_.context().stream.synchronize();
    const auto start = Clock::now();
    engine_.accumulate_gradients(tokens_, targets_, 1.0 / static_cast<double>(tokens_.size()));
    engine_.owned_gradient_square();
    engine_.update(++step_, 1e-4, 1.0);
    engine_.context().stream.synchronize();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  // Of the last step, by the device's clock.
  double pass_seconds(pipeline::ActionKind kind) const {
    return engine_.last_execution().costs.at(0)[static_cast<size_t>(kind)].seconds;
  }
  double tokens() const { return static_cast<double>(tokens_.size()); }
  double flops() const {
    return tokens() * model::training_flops_per_token(config_.model, config_.data.seq_len).total();
  }
  const MemoryLedger& ledger() const { return ledger_; }

 private:
  Config config_;
  MemoryLedger ledger_;
  std::unique_ptr<comm::Communicator> comm_;
  Engine engine_;
  std::vector<int32_t> tokens_, targets_;
  int64_t step_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Measured {
  std::vector<double> forward, backward, rest;  // seconds per step; the rest is the gradient's norm and the update
};

// What the operations of each pass are predicted to take, beside what the pass takes.
void compare(const char* name, const Config& config, const Measured& measured, const std::string& device) {
  const model::PlanInputs inputs{config, 1, model::plan_device(load_device(device))};
  const model::Plan plan = make_plan(inputs);
  double forward = 0, backward = 0, rest = 0;
  for (const model::OperationTime& time : predict_operations(inputs, plan, plan.ranks.at(0))) {
    const std::string_view pass = time.pass;
    (pass == "forward" ? forward : pass == "update" ? rest : backward) += time.seconds();
  }
  std::printf("%s%-8s predicted and measured, one step, ms; measured over predicted\n",
              operations_to_text(inputs).c_str(), name);
  const auto row = [&](const char* pass, double predicted, const std::vector<double>& seconds) {
    const double time = median(seconds);
    std::printf("%-8s   %-10s %10.2f %10.2f %10.2f\n", name, pass, 1e3 * predicted, 1e3 * time, time / predicted);
  };
  row("forward", forward, measured.forward);
  row("backward", backward, measured.backward);
  row("update", rest, measured.rest);
}

void report(const char* name, const Config& config, const Options& options, double rate) {
  Run run(config);
  run.step();
  run.step();
  std::vector<double> seconds;
  Measured measured;
  for (int i = 0; i < options.steps; ++i) {
    seconds.push_back(run.step());
    measured.forward.push_back(run.pass_seconds(pipeline::ActionKind::forward));
    measured.backward.push_back(run.pass_seconds(pipeline::ActionKind::backward));
    measured.rest.push_back(seconds.back() - measured.forward.back() - measured.backward.back());
  }
  const double time = median(seconds), flops = run.flops() / time;
  std::printf("%-8s %.2fM parameters: %.1f ms per step, %.0f tokens/s, %.1f TFLOP/s, %.3f of the product's rate", name,
              static_cast<double>(model::model_parameters(config.model).total()) / 1e6, 1e3 * time, run.tokens() / time,
              flops / 1e12, flops / rate);
  if (options.peak_tflops > 0) std::printf(", MFU %.3f", flops / 1e12 / options.peak_tflops);
  std::printf("\n%s", run.ledger().report().c_str());
  if (!options.device.empty()) compare(name, config, measured, options.device);
  std::fflush(stdout);
}

void attnres(const Options& options) {
  Run standard(dense_config(Residual::standard, options.small)),
      block(dense_config(Residual::block_attnres, options.small));
  std::vector<double> ratios;
  for (int i = 0; i < options.steps + 2; ++i) {
    const double off = standard.step(), on = block.step();
    if (i >= 2) ratios.push_back(on / off);
  }
  std::printf("attnres  Block AttnRes with 10 sources over the standard residual: %.4f of its step\n", median(ratios));
  std::fflush(stdout);
}

void run(const Options& options) {
  if (!options.device.empty()) load_device(options.device);  // a fault is told before anything is measured
  const auto wants = [&](const char* name) { return options.only.empty() || options.only == name; };
  double rate = 0;
  {
    bench::Gpu gpu;
    rate = gpu.matmul_rate(options.small ? 64 : 8192);
  }
  std::printf("bf16 product: %.0f TFLOP/s\n", rate / 1e12);
  if (wants("dense")) report("dense", dense_config(Residual::standard, options.small), options, rate);
  if (wants("attnres")) attnres(options);
  if (wants("kimi")) report("kimi", kimi_config(options.small), options, rate);
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  lamina::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const bool has_value = i + 1 < argc;
    if (option == "--small") {
      options.small = true;
    } else if (option == "--peak-tflops" && has_value) {
      options.peak_tflops = std::atof(argv[++i]);
    } else if (option == "--only" && has_value) {
      options.only = argv[++i];
    } else if (option == "--steps" && has_value) {
      options.steps = std::atoi(argv[++i]);
    } else if (option == "--device" && has_value) {
      options.device = argv[++i];
    } else {
      std::fprintf(stderr, "unknown option %s, expected --peak-tflops, --only, --steps, --device or --small\n",
                   argv[i]);
      return 1;
    }
  }
  if (const std::string why = lamina::cuda::why_none(); !why.empty()) {
    std::fprintf(stderr, "bench_gpu_train: %s\n", why.c_str());
    return 1;
  }
  try {
    lamina::run(options);
  } catch (const lamina::Error& failure) {
    std::fprintf(stderr, "bench_gpu_train: %s\n", failure.what());
    return 1;
  }
  return 0;
}
