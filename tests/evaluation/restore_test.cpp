// An engine for inference, restored from a checkpoint, against the one that trains on.
#include "trainer/step/restore.h"

#include <gtest/gtest.h>

#include "configs/schema/decode.h"
#include "parallel/comm/thread.h"
#include "tests/trainer/checkpoint_support.h"
#include "tests/trainer/layout_support.h"

namespace lamina {
namespace {

Config config_of(Precision precision) {
  Config c = tiny_kimi_config(Residual::block_attnres, 3, 2);
  c.run.name = "test";
  c.data.seq_len = 7;
  c.data.train = {{"tokens", 1.0}};
  c.train.num_steps = 1;
  c.train.precision = precision;
  c.train.bf16_products = precision == Precision::bf16 ? Bf16ProductsChoice::fp32 : Bf16ProductsChoice::automatic;
  c.train.global_batch_size = 4;
  c.train.micro_batch_size = 2;
  c.parallel.expert = 2;
  return c;
}

// Parameters of two ranks, which share out the experts and load halves of the rest.
TEST(Restore, ForInferenceGivesTheLossesOfTraining) {
  for (const Precision precision : {Precision::fp32, Precision::bf16}) {
    const Config config = config_of(precision);
    const testing_checkpoint::TemporaryFolder folder;
    comm::run_threads(2, [&](comm::Communicator& comm) {
      Engine engine(config, comm, nullptr);
      engine.initialise();
      move_depth_queries(engine);
      CheckpointInfo info;
      info.step = 1;
      info.config_yaml = to_yaml(config);
      save_checkpoint(folder.path(), info, engine.optimizer().primary_state(), comm, 0);
      const std::vector<int32_t> tokens = {1, 5, 2, 8, 0, 12, 3, 9, 4, 4, 7, 11, 6, 10};
      const auto losses = [&](Engine& of) {
        std::vector<double> found(tokens.size());
        of.token_losses(tokens, tokens, 7, found);
        return found;
      };
      const auto restored = [&](EngineUse use) {
        return restore_parameters(folder.path() / "step-00000001", comm, use).engine;
      };
      const auto expected = losses(*restored(EngineUse::training));
      EXPECT_EQ(losses(*restored(EngineUse::inference)), expected);
      EXPECT_GT(expected[0], 0);
    });
  }
}

TEST(Restore, ForInferenceThereAreParametersOnly) {
  Config config = config_of(Precision::bf16);
  config.parallel.expert = 1;
  const auto self = comm::make_self_communicator();
  const auto bytes = [&](EngineUse use, const char* purpose) {
    MemoryLedger ledger;
    const Engine engine(config, *self, &ledger, 0, use);
    const auto entries = ledger.entries();
    return entries.contains(purpose) ? entries.at(purpose).peak_bytes : 0;
  };
  EXPECT_EQ(bytes(EngineUse::inference, "parameters"), bytes(EngineUse::training, "parameters"));
  for (const char* purpose : {"gradients", "optimizer"}) {
    EXPECT_GT(bytes(EngineUse::training, purpose), 0) << purpose;
    EXPECT_EQ(bytes(EngineUse::inference, purpose), 0) << purpose;
  }
  Engine engine(config, *self, nullptr, 0, EngineUse::inference);
  const std::vector<int32_t> tokens(28);
  EXPECT_THROW(engine.optimizer(), InternalError);
  EXPECT_THROW(engine.accumulate_gradients(tokens, tokens, 1.0), InternalError);
}

}  // namespace
}  // namespace lamina
