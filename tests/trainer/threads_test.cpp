// Whole steps and the number of threads. In fp64 it changes no bit; in fp32 and bf16 the products are oneDNN's, and the same number
// gives the same bits. More threads than cores are no obstacle.
#include "core/device/cpu/parallel_for.h"
#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

// Large enough that loops are shared out, with rows that no number of threads divides.
Config config_of(bool kimi, OptimizerName optimizer, Precision precision) {
  Config c = kimi ? tiny_kimi_config(Residual::block_attnres, 3, 2) : tiny_config(Residual::standard, 2, 2);
  c.model.vocab_size = 61;
  c.model.hidden_size = 100;
  c.model.num_attention_heads = 3;
  c.model.intermediate_size = 130;
  c.model.initializer_range = 0.1;
  c.data.seq_len = 251;
  c.data.document_mask = kimi;
  c.train.micro_batch_size = 2;
  c.train.global_batch_size = 4;
  c.train.precision = precision;
  c.train.optimizer.name = optimizer;
  c.train.recompute = kimi ? Recompute::full : Recompute::none;
  return c;
}

// The masters and moments after two steps, and the losses before them.
Tensors state_after_steps(const Config& c, int threads) {
  const int before = cpu::num_threads();
  cpu::set_num_threads(threads);
  const auto comm = comm::make_self_communicator();
  Engine engine(c, *comm, nullptr);
  if (c.data.document_mask) engine.set_end_of_document(7);
  engine.initialise();
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  Tensors out;
  for (int64_t step = 1; step <= 2; ++step) {
    std::vector<double> losses(tokens.size());
    engine.accumulate_gradients(tokens, targets, 1.0 / static_cast<double>(tokens.size()), nullptr, losses);
    out["losses"].insert(out["losses"].end(), losses.begin(), losses.end());
    out["squares"].push_back(engine.owned_gradient_square());
    engine.update(step, 1e-2, 0.5);
  }
  for (const TensorPiece& piece : engine.optimizer().primary_state()) {
    for (int64_t i = 0; i < piece.data.num_elements(); ++i) out[piece.name].push_back(element_of(piece.data, i));
  }
  cpu::set_num_threads(before);
  return out;
}

TEST(ThreadsOfSteps, TheSameBits) {
  for (const bool kimi : {false, true}) {
    for (const OptimizerName optimizer : {OptimizerName::adamw, OptimizerName::muon}) {
      const Config wide = config_of(kimi, optimizer, Precision::fp64);
      const Tensors one = state_after_steps(wide, 1);
      for (const int threads : {2, 3, 7}) EXPECT_TRUE(state_after_steps(wide, threads) == one) << threads;
      for (const Precision precision : {Precision::fp32, Precision::bf16}) {
        const Config c = config_of(kimi, optimizer, precision);
        for (const int threads : {2, 7}) {
          const Tensors first = state_after_steps(c, threads);
          EXPECT_TRUE(state_after_steps(c, threads) == first) << threads << " threads, " << c.model.hidden_size;
        }
      }
    }
  }
}

}  // namespace
}  // namespace lamina
