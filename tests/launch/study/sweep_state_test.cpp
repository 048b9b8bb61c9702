#include "launch/study/sweep_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/schema/decode.h"
#include "core/io/file.h"
#include "core/io/folder_lock.h"
#include "launch/study/scaling_law.h"
#include "tests/trainer/checkpoint_support.h"
#include "trainer/record/run_folder.h"

namespace lamina::study {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_checkpoint::TemporaryFolder;

constexpr int num_steps = 3;

class SweepState : public testing::Test {
 protected:
  void SetUp() override {
    run_.id = {"s1-bad", "s1", "bad", 1};
    run_.config = parse_config(
        fmt::format("run: {{output_dir: {}}}\n"
                    "model: {{vocab_size: 256, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,\n"
                    "  kv_lora_rank: 8, qk_nope_head_dim: 8, v_head_dim: 8, intermediate_size: 48}}\n"
                    "data: {{seq_len: 16, train: [{{path: a}}], validation: {{path: a, num_sequences: 2}}}}\n"
                    "train: {{num_steps: {}, global_batch_size: 4, micro_batch_size: 2, optimizer: {{lr: 1.0e-3}}}}\n",
                    (sweep_.path() / "s1-bad").string(), num_steps),
        "base.yaml");
    std::filesystem::create_directories(files().root);
    io::write_file_atomically(files().config(), to_yaml(run_.config));
  }
  RunFolder files() const { return {run_.config.run.output_dir}; }
  // The last one ends with `rest`, after peak_bytes as of very many ranks when `is_long`.
  void write_rows(int last_step, const std::string& rest, bool is_long = false) const {
    std::string rows;
    for (int step = 1; step < last_step; ++step) rows += row(step);
    std::string last = row(last_step);
    last.resize(last.size() - 2);
    if (is_long) {
      last += ", \"peak_bytes\": [1";
      while (last.size() < size_t{1} << 20) last += ", 123456789";
      last += "]";
    }
    io::write_file_atomically(files().metrics(), rows + last + rest + "}\n");
  }
  static std::string row(int step) {
    return fmt::format(
        "{{\"step\": {}, \"loss\": 2.5, \"grad_norm\": 1, \"lr\": 1, \"tokens\": {}, \"tokens_per_second\": 7}}\n",
        step, 64 * step);
  }
  void save(int64_t step) const { testing_checkpoint::save(files().checkpoints(), step, 1); }

  TemporaryFolder sweep_;
  PlannedRun run_;
};

TEST_F(SweepState, ARowOfAnyLengthIsTheLastOne) {
  for (const bool is_long : {false, true}) {
    write_rows(num_steps, ", \"validation_loss\": 2.25", is_long);
    save(num_steps);
    const RunStatus status = read_status(run_);
    EXPECT_EQ(status.state, RunState::done) << is_long;
    EXPECT_EQ(status.step, num_steps);
    EXPECT_EQ(status.validation_loss, 2.25);
  }
  // Behind it half a row that is long too.
  std::string text = io::read_file(files().metrics());
  text += text.substr(text.rfind("{\"step\""), 700'000);
  io::write_file_atomically(files().metrics(), text);
  EXPECT_EQ(read_status(run_).state, RunState::done);
}

TEST_F(SweepState, KnowsARunThatDiverged) {
  EXPECT_EQ(read_status(run_).state, RunState::waiting);
  write_divergence(files(), {1, "step 1: loss nan"});  // before its first row
  EXPECT_EQ(read_status(run_).state, RunState::diverged);
  write_rows(2, "");
  write_divergence(files(), {3, "step 3: loss nan"});
  RunStatus status = read_status(run_);
  EXPECT_EQ(status.state, RunState::diverged);
  EXPECT_EQ(status.reason, "step 3: loss nan");
  EXPECT_EQ(status_line(run_, status, 8), "s1-bad    diverged       2/3       loss 2.5000  step 3: loss nan");
  remove_divergence(files());
  EXPECT_EQ(read_status(run_).state, RunState::waiting);
  write_rows(num_steps, ", \"validation_loss\": null");  // of an older program
  save(num_steps);
  status = read_status(run_);
  EXPECT_EQ(status.state, RunState::diverged);
  EXPECT_THAT(status.reason, HasSubstr("no finite validation_loss at the last step"));
}

TEST_F(SweepState, ALockedFolderIsARunThatRuns) {
  io::FolderLock lock(files().root, "lamina train");
  ASSERT_TRUE(lock.try_take());
  EXPECT_EQ(read_status(run_).state, RunState::running);
  lock.release();
  EXPECT_EQ(read_status(run_).state, RunState::waiting);
}

TEST_F(SweepState, TheSumsNameDivergedOnesWhereThereAreSome) {
  std::vector<RunStatus> all(2);
  all[0].state = RunState::done;
  EXPECT_EQ(status_sums(all), "2 runs: 1 done, 0 running, 1 waiting, 0 failed");
  all[1].state = RunState::diverged;
  EXPECT_EQ(status_sums(all), "2 runs: 1 done, 0 running, 0 waiting, 0 failed, 1 diverged");
}

TEST_F(SweepState, AFitLeavesDivergedOnesOutByName) {
  const SweepData sweep{sweep_.path(), "s", {run_.id}};
  const auto warnings_of = [&](size_t points) {
    std::vector<std::string> warnings;
    EXPECT_EQ(sweep_points(sweep, {}, warnings).size(), points);
    return warnings;
  };
  EXPECT_THAT(warnings_of(0), ElementsAre("s1-bad is left out: not started"));
  write_divergence(files(), {1, "step 1: loss nan"});
  EXPECT_THAT(warnings_of(0), ElementsAre("s1-bad is left out: diverged at step 1"));
  write_rows(num_steps, ", \"validation_loss\": 2.25");
  write_divergence(files(), {3, "step 3: parameters/x: element 1 is nan"});
  EXPECT_THAT(warnings_of(0), ElementsAre("s1-bad is left out: diverged at step 3"));
  remove_divergence(files());
  EXPECT_THAT(warnings_of(1), ElementsAre());
  write_rows(num_steps, ", \"validation_loss\": null");
  EXPECT_THAT(warnings_of(0), ElementsAre("s1-bad is left out: diverged at step 3"));
}

}  // namespace
}  // namespace lamina::study
