// What a training step asks of the device, as the emulated one counts it.
#include <lamina_emulator_counts.h>

#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

lamina_emulator::Counts counts_of(const std::function<void()>& work) {
  const lamina_emulator::Counts before = lamina_emulator::counts();
  work();
  const lamina_emulator::Counts after = lamina_emulator::counts();
  return {after.launches - before.launches, after.blocking_calls - before.blocking_calls};
}

// Where the host waits, it waits for the stream, which GpuEngine.WaitsAreCounted counts: nothing else holds it up once memory is booked.
TEST(EmulatedCounts, NoCallHoldsUpTheHost) {
  Config c = tiny_kimi_config(Residual::block_attnres, 3, 1);
  c.run.device = "cuda";
  c.train.precision = Precision::bf16;
  c.train.global_batch_size = 2;
  c.train.optimizer.name = OptimizerName::muon;
  c.train.optimizer.qk_clip = 0.01;  // every head is clipped
  const std::vector<int32_t> tokens = random_tokens(c, "tokens"), targets = random_tokens(c, "targets");
  const auto comm = comm::make_staged_communicator(comm::make_self_communicator(), nullptr);
  Engine engine(c, *comm, nullptr);
  engine.initialise();
  for (int64_t step = 1; step <= 3; ++step) {
    const auto pass = counts_of([&] { engine.accumulate_gradients(tokens, targets, 1.0); });
    const auto norm = counts_of([&] { engine.owned_gradient_square(); });
    const auto update = counts_of([&] { engine.update(step, 1e-3, 1.0, 1e-3); });
    EXPECT_EQ(norm.launches, 1u);
    if (step < 3) continue;
    EXPECT_EQ(pass.blocking_calls, 0u);
    EXPECT_EQ(norm.blocking_calls, 0u);
    EXPECT_EQ(update.blocking_calls, 0u);
    EXPECT_GT(pass.launches, 0u);
  }
}

}  // namespace
}  // namespace lamina
