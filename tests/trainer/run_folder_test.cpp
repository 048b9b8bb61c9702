#include "trainer/record/run_folder.h"

#include <gmock/gmock.h>

#include <map>
#include <memory>

#include "configs/schema/decode.h"
#include "core/io/file.h"
#include "tests/trainer/checkpoint_support.h"

namespace lamina {
namespace {

using namespace testing_checkpoint;
using testing::ElementsAre;
using testing::HasSubstr;

Config small_config(const fs::path& output_dir) {
  return parse_config(fmt::format(R"(
run: {{name: test, seed: 3, output_dir: "{}"}}
model: {{vocab_size: 256, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, kv_lora_rank: 8, qk_nope_head_dim: 8,
  qk_rope_head_dim: 4, v_head_dim: 8, intermediate_size: 48}}
data: {{seq_len: 16, train: [{{path: data/a, weight: 1.0}}, {{path: data/b, weight: 2.0}}]}}
train: {{num_steps: 10, global_batch_size: 4, micro_batch_size: 2, optimizer: {{name: adamw, lr: 1.0e-3}},
  lr_schedule: {{name: constant}}}}
)",
                                  output_dir.string()),
                      "test.yaml");
}

RunFolder prepare(const Config& config) {
  const auto self = comm::make_self_communicator();
  return prepare_run_folder(config, *self);
}

TEST(RunFolder, IsMadeWithItsConfiguration) {
  const TemporaryFolder folder;
  const Config config = small_config(folder.path() / "runs" / "x");
  const RunFolder run = prepare(config);
  EXPECT_EQ(run.root, folder.path() / "runs" / "x");
  EXPECT_EQ(io::read_file(run.config()), to_yaml(config));
  EXPECT_TRUE(fs::is_directory(run.checkpoints()));
  EXPECT_THAT(names_in(run.root), ElementsAre("checkpoints", "config.yaml"));
  EXPECT_EQ(prepare(config).root, run.root);  // again
}

TEST(RunFolder, AllRanksLearnOfAFailure) {
  const TemporaryFolder folder;
  io::write_file_atomically(folder.path() / "file", "in the way");
  const Config config = small_config(folder.path() / "file" / "x");
  comm::run_threads(3, [&](comm::Communicator& comm) {
    EXPECT_THAT(message_of([&] { prepare_run_folder(config, comm); }),
                HasSubstr((folder.path() / "file" / "x").string()));
  });
}

TEST(RunFolder, TakesRunTimeChangesAndStoresThem) {
  const TemporaryFolder folder;
  Config config = small_config(folder.path());
  const RunFolder run = prepare(config);
  io::write_file_atomically(run.metrics(), "{\"step\": 1}\n");
  config.train.num_steps = 20;
  config.train.micro_batch_size = 4;
  config.parallel.data = 1;
  config.train.optimizer.lr = 2e-3;
  config.data.train[1].path = "elsewhere/b";
  EXPECT_THAT(check_same_experiment(io::read_file(run.config()), "config.yaml", config),
              testing::UnorderedElementsAre("data.train[1].path: elsewhere/b (was data/b)", "parallel.data: 1 (was 0)",
                                            "train.micro_batch_size: 4 (was 2)", "train.num_steps: 20 (was 10)",
                                            "train.optimizer.lr: 0.002 (was 0.001)"));
  prepare(config);
  EXPECT_EQ(io::read_file(run.config()), to_yaml(config));
}

// A run of a program that did not have the factor yet goes on with it, and says so.
TEST(RunFolder, WithoutAFactorForDepthQueriesItWasOne) {
  const TemporaryFolder folder;
  Config config = small_config(folder.path());
  config.train.optimizer.lr = 0.05;
  config.train.optimizer.attn_res_lr_factor = 0.0625;
  std::string old = to_yaml(config);
  const std::string line = "    attn_res_lr_factor: 0.0625\n";
  ASSERT_NE(old.find(line), std::string::npos);
  old.erase(old.find(line), line.size());
  EXPECT_THAT(check_same_experiment(old, "config.yaml", config),
              ElementsAre("train.optimizer.attn_res_lr_factor: 0.0625 (was 1)"));
  EXPECT_THAT(check_same_experiment(to_yaml(config), "config.yaml", config), ElementsAre());
}

// As the learning rate, but a tensor's rule stays: it has other state.
TEST(RunFolder, GroupsMayChangeAndRulesMayNot) {
  const TemporaryFolder folder;
  Config config = small_config(folder.path());
  config.train.optimizer.groups = {{"*norm.weight", 0.5, {}, {}}};
  const RunFolder run = prepare(config);
  io::write_file_atomically(run.metrics(), "{\"step\": 1}\n");
  config.train.optimizer.groups = {{"*layernorm.weight", 0.25, 0.0, {}}, {"lm_head.weight", {}, 0.2, {}}};
  const std::string stored = io::read_file(run.config()), list = "train.optimizer.groups";
  EXPECT_THAT(check_same_experiment(stored, "config.yaml", config),
              testing::UnorderedElementsAre(
                  list + "[0].pattern: \"*layernorm.weight\" (was \"*norm.weight\")",
                  list + "[0].lr_factor: 0.25 (was 0.5)", list + "[0].weight_decay: 0 (was (absent))",
                  list + "[1].pattern: lm_head.weight (was (absent))", list + "[1].weight_decay: 0.2 (was (absent))"));
  config.train.optimizer.groups.push_back({"*.o_proj.weight", {}, {}, OptimizerName::muon});
  EXPECT_EQ(
      message_of([&] { check_same_experiment(stored, "config.yaml", config); }),
      "config.yaml: train.optimizer.groups: rule muon found for model.layers.0.self_attn.o_proj.weight, expected adamw "
      "as this run began; choose another run.output_dir for another experiment");
}

TEST(RunFolder, RefusesAnotherExperimentAndNamesTheKey) {
  const TemporaryFolder folder;
  const Config config = small_config(folder.path());
  const RunFolder run = prepare(config);
  io::write_file_atomically(run.metrics(), "{\"step\": 1}\n");
  const auto refusal = [&](auto change) {
    Config other = config;
    change(other);
    return message_of([&] { prepare(other); });
  };
  EXPECT_EQ(
      refusal([](Config& c) { c.model.hidden_size = 64; }),
      run.config().string() +
          ": model.hidden_size: 64 found, expected 32 as this run began; choose another run.output_dir for another "
          "experiment");
  EXPECT_THAT(refusal([](Config& c) { c.data.seq_len = 8; }), HasSubstr("data.seq_len: 8 found, expected 16"));
  EXPECT_THAT(refusal([](Config& c) { c.run.seed = 4; }), HasSubstr("run.seed: 4 found, expected 3"));
  EXPECT_THAT(refusal([](Config& c) { c.train.global_batch_size = 8; }), HasSubstr("train.global_batch_size"));
  EXPECT_THAT(refusal([](Config& c) { c.train.precision = Precision::fp32; }), HasSubstr("train.precision"));
  EXPECT_THAT(refusal([](Config& c) { c.model.residual = Residual::standard; }), HasSubstr("model."));
  EXPECT_THAT(refusal([](Config& c) { c.model.q_lora_rank = 4; }),
              HasSubstr("model.q_lora_rank: 4 found, expected (absent)"));
  EXPECT_THAT(refusal([](Config& c) { c.data.train[1].weight = 3; }), HasSubstr("data.train[1].weight"));
  EXPECT_THAT(refusal([](Config& c) { c.data.train.pop_back(); }), HasSubstr("data.train[1].weight: (absent) found"));
  EXPECT_EQ(io::read_file(run.config()), to_yaml(config));  // a refusal changes nothing
}

TEST(RunFolder, WithoutResultsAnotherExperimentMayBegin) {
  const TemporaryFolder folder;
  Config config = small_config(folder.path());
  prepare(config);
  config.model.hidden_size = 64;
  EXPECT_NO_THROW(prepare(config));
  save(folder.path() / "checkpoints", 1, 1);  // a result
  config.model.hidden_size = 32;
  EXPECT_THROW(prepare(config), Error);
}

// Every file's content by its path.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    found[entry.path().string()] = entry.is_regular_file() ? io::read_file(entry.path()) : "";
  return found;
}

TEST(RunFolder, AChecksWritesNothing) {
  const TemporaryFolder folder;
  Config config = small_config(folder.path() / "runs" / "x");
  const auto self = comm::make_self_communicator();
  check_run_folder(run_folder_of(config), config, *self);
  EXPECT_TRUE(names_in(folder.path()).empty());
  const RunFolder run = prepare(config);
  io::write_file_atomically(run.metrics(), "{\"step\": 1}\n");
  const auto before = contents(folder.path());
  config.train.num_steps = 20;
  check_run_folder(run, config, *self);
  config.model.hidden_size = 64;
  EXPECT_THROW(check_run_folder(run, config, *self), Error);
  EXPECT_EQ(contents(folder.path()), before);
}

TEST(RunFolder, OneOfAllRanksHoldsTheLock) {
  const TemporaryFolder folder;
  const RunFolder run{folder.path() / "x"};
  comm::run_threads(3, [&](comm::Communicator& comm) {
    std::unique_ptr<io::FolderLock> lock;
    EXPECT_TRUE(lock_run_folder(run, comm, lock));
    EXPECT_EQ(lock != nullptr, comm.rank() == 0);
    comm.barrier();
    std::unique_ptr<io::FolderLock> second;
    EXPECT_THAT(message_of([&] { lock_run_folder(run, comm, second); }), HasSubstr("(lamina train, since"));
  });
  EXPECT_TRUE(names_in(folder.path()).empty());
}

TEST(RunFolder, RemembersADivergence) {
  const TemporaryFolder folder;
  const RunFolder run{folder.path()};
  EXPECT_FALSE(read_divergence(run));
  remove_divergence(run);
  write_divergence(run, {7, "step 7: loss nan, \"quoted\""});
  ASSERT_TRUE(read_divergence(run));
  EXPECT_EQ(read_divergence(run)->step, 7);
  EXPECT_EQ(read_divergence(run)->reason, "step 7: loss nan, \"quoted\"");
  remove_divergence(run);
  EXPECT_FALSE(read_divergence(run));
  io::write_file_atomically(run.divergence(), std::string_view("{"));
  EXPECT_THAT(message_of([&] { read_divergence(run); }), HasSubstr("diverged.json: found no step and reason"));
}

TEST(RunFolder, TellsAValidationThatIsNotFinite) {
  const TemporaryFolder folder;
  const RunFolder run{folder.path()};
  EXPECT_FALSE(has_infinite_validation(run, 2));
  io::write_file_atomically(run.metrics(), std::string_view("{\"step\": 2, \"validation_loss\": null}\n"));
  EXPECT_TRUE(has_infinite_validation(run, 2));
  EXPECT_FALSE(has_infinite_validation(run, 1));
  EXPECT_FALSE(lacks(run, 2, "validation_loss"));
  io::write_file_atomically(run.metrics(), std::string_view("{\"step\": 2, \"validation_loss\": 2.5}\n"));
  EXPECT_FALSE(has_infinite_validation(run, 2));
}

JsonRow validation(double loss, double bits_per_byte) {
  return JsonRow().add("validation_loss", loss).add("validation_bits_per_byte", bits_per_byte);
}

// A number of peak_bytes for each of very many ranks.
std::string long_row(int step) {
  std::string row = fmt::format("{{\"step\": {}, \"peak_bytes\": [1", step);
  while (row.size() < size_t{1} << 20) row += ", 123456789";
  return row + "]}\n";
}

TEST(RunFolder, RowsMayHaveAnyLength) {
  const TemporaryFolder folder;
  const RunFolder run{folder.path()};
  io::write_file_atomically(run.metrics(), long_row(1) + long_row(2) + long_row(3));
  EXPECT_TRUE(lacks(run, 3, "validation_loss"));
  truncate_metrics(run, 2);
  EXPECT_EQ(io::read_file(run.metrics()), long_row(1) + long_row(2));
  EXPECT_TRUE(lacks(run, 2, "validation_loss"));
  io::write_file_atomically(run.metrics(), long_row(1) + long_row(2) + long_row(3).substr(0, 700'000));
  truncate_metrics(run, 9);
  EXPECT_EQ(io::read_file(run.metrics()), long_row(1) + long_row(2));
  add_to_last_row(run, validation(0.5, 1.5));
  EXPECT_FALSE(lacks(run, 2, "validation_loss"));
}

TEST(RunFolder, AddsTheValidationThatAStopPrevented) {
  const TemporaryFolder folder;
  const RunFolder run{folder.path()};
  EXPECT_FALSE(lacks(run, 2, "validation_loss"));  // no file
  io::write_file_atomically(run.metrics(),
                            std::string_view("{\"step\": 1, \"loss\": 3}\n{\"step\": 2, \"loss\": 2.5}\n"));
  EXPECT_FALSE(lacks(run, 1, "validation_loss"));  // not the last row
  EXPECT_FALSE(lacks(run, 3, "validation_loss"));
  ASSERT_TRUE(lacks(run, 2, "validation_loss"));
  add_to_last_row(run, validation(0.1, 1.5));
  EXPECT_EQ(io::read_file(run.metrics()),
            "{\"step\": 1, \"loss\": 3}\n"
            "{\"step\": 2, \"loss\": 2.5, \"validation_loss\": 0.1, \"validation_bits_per_byte\": 1.5}\n");
  EXPECT_FALSE(lacks(run, 2, "validation_loss"));
  EXPECT_THROW(add_to_last_row(run, validation(0.1, 1.5)), InternalError);
  io::write_file_atomically(run.metrics(), std::string_view("{\"step\": 1}\n"));  // the only row
  ASSERT_TRUE(lacks(run, 1, "validation_loss"));
  add_to_last_row(run, validation(2, 3));
  EXPECT_EQ(io::read_file(run.metrics()), "{\"step\": 1, \"validation_loss\": 2, \"validation_bits_per_byte\": 3}\n");
}

TEST(RunFolder, TruncatesTheRowsAfterTheResumedStep) {
  const TemporaryFolder folder;
  const RunFolder run{folder.path()};
  EXPECT_NO_THROW(truncate_metrics(run, 3));  // no files yet
  io::write_file_atomically(run.metrics(),
                            "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2}\n{\"step\": 3}\n{\"step\": 4}\n{\"st");
  io::write_file_atomically(run.layers(),
                            "{\"step\": 2, \"sublayer\": 0}\n{\"step\": 2, \"sublayer\": 1}\n{\"step\": 4}\n");
  truncate_metrics(run, 2);
  EXPECT_EQ(io::read_file(run.metrics()), "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2}\n");
  EXPECT_EQ(io::read_file(run.layers()), "{\"step\": 2, \"sublayer\": 0}\n{\"step\": 2, \"sublayer\": 1}\n");
  truncate_metrics(run, 2);
  EXPECT_EQ(io::read_file(run.metrics()), "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2}\n");
  truncate_metrics(run, 0);
  EXPECT_EQ(io::read_file(run.metrics()), "");
}

}  // namespace
}  // namespace lamina
