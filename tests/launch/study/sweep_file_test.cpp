#include "launch/study/sweep_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/io/file.h"
#include "launch/study/sweep_estimate.h"
#include "launch/study/sweep_tune.h"
#include "tests/trainer/checkpoint_support.h"

namespace lamina::study {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing_checkpoint::message_of;
using testing_checkpoint::TemporaryFolder;

const std::string experiment =
    "model: {vocab_size: 256, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, kv_lora_rank: 8,\n"
    "  qk_nope_head_dim: 8, v_head_dim: 8, intermediate_size: 48}\n"
    "data: {seq_len: 16, train: [{path: data/a}]}\n"
    "train: {num_steps: 10, global_batch_size: 4, micro_batch_size: 2, optimizer: {lr: 1.0e-3}}\n";

class SweepFile : public testing::Test {
 protected:
  void SetUp() override {
    io::write_file_atomically(folder_.path() / "base.yaml", experiment);
    std::string large = experiment;
    large.replace(large.find("hidden_size: 32"), 15, "hidden_size: 64");
    io::write_file_atomically(folder_.path() / "large.yaml", large);
  }
  SweepPlan parse(const std::string& yaml) const { return parse_sweep(yaml, (folder_.path() / "s.yaml").string()); }
  // The message without the folder's name.
  std::string refusal(const std::string& yaml) const {
    std::string message = message_of([&] { parse(yaml); });
    const std::string prefix = folder_.path().string() + "/";
    for (size_t at; (at = message.find(prefix)) != std::string::npos;) message.erase(at, prefix.size());
    return message;
  }
  static std::vector<std::string> names(const SweepPlan& plan) {
    std::vector<std::string> names;
    for (const PlannedRun& run : plan.runs) names.push_back(run.id.name);
    return names;
  }
  TemporaryFolder folder_;
};

const std::string tuned =
    "name: study\nbase: base.yaml\nladder:\n  small: {}\n  large: large.yaml\n"
    "axes:\n  residual:\n    standard: {model.residual: standard}\n    block: {model.attn_res_block_size: 1}\n"
    "  train.grad_clip: [0.5, 1.0]\nseeds: [3, 7]\n"
    "set: {data.validation.path: data/a, train.num_steps: 100, train.lr_schedule: {name: wsd, warmup_steps: 10, "
    "decay_steps: 30}}\n";

TEST_F(SweepFile, TunesForEachCombinationThatPerNames) {
  const auto cells = [](const std::vector<SweepCell>& all) {
    std::vector<std::string> names;
    for (const SweepCell& cell : all) names.push_back(fmt::format("{} {}", cell.name, cell.runs.size()));
    return names;
  };
  const std::string tune = "tune: {key: train.optimizer.lr, values: [1.0e-3, 2.0e-3, 4.0e-3]";
  const SweepPlan all = parse(tuned + tune + "}\n");
  ASSERT_TRUE(all.tune);
  EXPECT_EQ(all.tune->cells.size(), 8u);
  EXPECT_EQ(all.tune->cells.front().name, "small-standard-grad_clip_0.5");
  EXPECT_EQ(all.tune->seeds, std::vector<uint64_t>{1001});
  EXPECT_EQ(all.tune->schedule, RungSchedule::shortened);  // the decay's place hangs on the length
  EXPECT_TRUE(all.runs[0].awaits_tuning);
  EXPECT_EQ(all.runs[0].candidates[2].train.optimizer.lr, 4e-3);
  EXPECT_THAT(cells(parse(tuned + tune + ", per: [residual]}\n").tune->cells), ElementsAre("standard 8", "block 8"));
  EXPECT_THAT(cells(parse(tuned + tune + ", per: []}\n").tune->cells), ElementsAre("all 16"));
  const SweepPlan constant = parse(tuned + "tune: {key: train.optimizer.beta1, values: [0.8, 0.9]}\n");
  EXPECT_EQ(constant.tune->values, (std::vector<std::string>{"0.8", "0.9"}));
}

// A rung's learning rates: in proportion, or those of the whole run before its decay.
TEST_F(SweepFile, RungsHaveTheirShareOfTheSchedule) {
  const std::string tune = "tune: {key: train.optimizer.lr, values: [1.0e-3, 2.0e-3], rungs: [0.25, 0.6], schedule: ";
  const SweepPlan shortened = parse(tuned + tune + "shortened}\noutput_dir: " + folder_.path().string() + "\n");
  const SweepPlan rung = next_rung(shortened, read_tuning(shortened));
  ASSERT_EQ(rung.runs.size(), 16u);  // 8 cells, 2 values, 1 seed
  EXPECT_EQ(rung.runs[1].id.name, "small-standard-grad_clip_0.5-lr_2.0e-3-s1001-25steps");
  EXPECT_EQ(rung.runs[1].config.run.seed, 1001u);
  EXPECT_EQ(rung.runs[1].config.train.optimizer.lr, 2e-3);
  EXPECT_EQ(rung.runs[1].config.train.num_steps, 25);
  EXPECT_EQ(rung.runs[1].config.train.lr_schedule.warmup_steps, 2);
  EXPECT_EQ(rung.runs[1].config.train.lr_schedule.decay_steps, 7);
  const SweepPlan continued = parse(tuned + tune + "continued}\noutput_dir: " + folder_.path().string() + "\n");
  const Config first = next_rung(continued, read_tuning(continued)).runs[0].config;
  EXPECT_EQ(first.train.num_steps, 25);
  EXPECT_EQ(first.train.lr_schedule.warmup_steps, 10);
  EXPECT_EQ(first.train.lr_schedule.decay_steps, 0);
  // 8 cells x (2 values x 25 + 1 value x 0) steps of 100: half a run each. The second rung's single value needs no run.
  const double whole = run_flops(shortened.runs.front().config) + run_flops(shortened.runs.back().config);
  EXPECT_NEAR(sum(tuning_work(shortened)), 4 * 0.5 * whole, 1e-6 * whole);
}

TEST_F(SweepFile, RefusesABadTuning) {
  const auto message = [&](const std::string& section) { return refusal(tuned + section + "\n"); };
  const std::string good = "key: train.optimizer.lr, values: [1.0e-3, 2.0e-3]";
  for (const auto& [section, expected] : std::vector<std::pair<std::string, std::string>>{
           {"tune: fast", "tune: found 'fast', expected a section with key and values"},
           {"tune: {" + good + ", ladders: 1}", "tune.ladders: unknown key"},
           {"tune: {key: train.optimizer.lr}", "tune.values: missing, expected a list of two values or more"},
           {"tune: {key: train.optimizer.lr, values: [1.0e-3]}", "tune.values: found one value, expected two or more"},
           {"tune: {key: train.optimizer.lr, values: [0.001, 1.0e-3]}", "tune.values: found 1.0e-3 twice"},
           {"tune: {key: train.optimizer.lr, values: [0.001, fast]}", "train.optimizer.lr: found 'fast'"},
           {"tune: {key: train.optimiser.lr, values: [0.001, 0.002]}",
            "optimiser: unknown key, did you mean optimizer?"},
           {"tune: {key: run.seed, values: [1, 2]}", "tune.key: found run.seed"},
           {"tune: {key: train.grad_clip, values: [1, 2]}",
            "train.grad_clip: is what tune chooses, expected it there only"},
           {"tune: {" + good + ", per: [size]}",
            "tune.per: found 'size', expected some of ladder, residual, train.grad_clip"},
           {"tune: {" + good + ", seeds: [5, 5]}", "tune.seeds: found 5 twice"},
           {"tune: {" + good + ", rungs: [0.5, 0.25]}", "tune.rungs: found 0.25, expected more than the one before"},
           {"tune: {" + good + ", rungs: [0.5, 1.5]}",
            "tune.rungs: found '1.5', expected a number above 0 and at most 1"},
           {"tune: {" + good + ", rungs: [0.501, 0.504]}", "tune.rungs: found two rungs at step 50"},
           {"tune: {" + good + ", keep: 1}", "tune.keep: found '1', expected a number above 0 and below 1"},
           {"tune: {" + good + ", schedule: long}", "tune.schedule: found 'long', expected shortened or continued"},
           {"tune: {" + good + ", rungs: [0.8, 1], schedule: continued}",
            "expected none inside its decay, which begins after 70"},
           {"early_stop: {after: 0.5}", "early_stop.margin: missing"},
           {"early_stop: {margin: -1}", "early_stop.margin: found '-1', expected a number above 0"},
           {"early_stop: {margin: 1, after: 1}", "early_stop.after: found '1', expected a number above 0 and below 1"}})
    EXPECT_THAT(message(section), HasSubstr(expected)) << section;
}

TEST_F(SweepFile, ExpandsSizesThenVariantsThenSeeds) {
  const SweepPlan plan = parse(
      "name: study\nbase: base.yaml\n"
      "set: {train.grad_clip: 0.5}\n"
      "ladder:\n  small: {train.num_steps: 20}\n  large: large.yaml\n"
      "axes:\n  residual:\n    standard: {model.residual: standard}\n    block: {model.attn_res_block_size: 1}\n"
      "  train.optimizer.lr: [1.0e-3, 2.0e-3]\n"
      "seeds: [3, 7]\nranks: 2\n");
  EXPECT_EQ(plan.name, "study");
  EXPECT_EQ(plan.folder, "runs/study");
  EXPECT_EQ(plan.ranks, 2);
  ASSERT_EQ(plan.runs.size(), 16u);
  EXPECT_EQ(plan.runs.front().id.name, "small-standard-lr_1.0e-3-s3");
  EXPECT_EQ(plan.runs[1].id.name, "small-standard-lr_1.0e-3-s7");
  EXPECT_EQ(plan.runs[2].id.name, "small-standard-lr_2.0e-3-s3");
  EXPECT_EQ(plan.runs.back().id.name, "large-block-lr_2.0e-3-s7");
  const PlannedRun& last = plan.runs.back();
  EXPECT_EQ(last.id.size, "large");
  EXPECT_EQ(last.id.variant, "block-lr_2.0e-3");
  EXPECT_EQ(last.id.seed, 7u);
  EXPECT_EQ(last.config.run.seed, 7u);
  EXPECT_EQ(last.config.run.name, last.id.name);
  EXPECT_EQ(last.config.run.output_dir, "runs/study/large-block-lr_2.0e-3-s7");
  EXPECT_EQ(last.config.model.hidden_size, 64);
  EXPECT_EQ(last.config.model.attn_res_block_size, 1);
  EXPECT_EQ(last.config.train.num_steps, 10);
  EXPECT_EQ(last.config.train.optimizer.lr, 2e-3);
  for (const PlannedRun& run : plan.runs) EXPECT_EQ(run.config.train.grad_clip, 0.5);
  EXPECT_EQ(plan.runs.front().config.model.residual, Residual::standard);
  EXPECT_EQ(plan.runs.front().config.train.num_steps, 20);
}

TEST_F(SweepFile, IsOneRunWithoutLadderAxesAndSeeds) {
  EXPECT_THAT(names(parse("name: study\nbase: base.yaml\noutput_dir: there\n")), ElementsAre("s1"));
  EXPECT_EQ(parse("name: study\nbase: base.yaml\noutput_dir: there\n").folder, "there");
}

TEST_F(SweepFile, ReadsTheProjectsSweeps) {
  int count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(LAMINA_SOURCE_DIR) / "configs/sweeps")) {
    const SweepPlan plan = load_sweep(entry.path());
    EXPECT_EQ(plan.name, entry.path().stem().string());
    EXPECT_GE(plan.runs.size(), 18u) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 3);
}

TEST_F(SweepFile, LaterKeysWin) {
  const SweepPlan plan = parse(
      "name: s\nbase: base.yaml\nset: {train.num_steps: 11}\nladder: {a: {train.num_steps: 12}, b: {}}\n"
      "axes: {train.num_steps: [13]}\n");
  EXPECT_EQ(plan.runs[0].config.train.num_steps, 13);
  const SweepPlan without =
      parse("name: s\nbase: base.yaml\nset: {train.num_steps: 11}\nladder: {a: {train.num_steps: 12}, b: {}}\n");
  EXPECT_EQ(without.runs[0].config.train.num_steps, 12);
  EXPECT_EQ(without.runs[1].config.train.num_steps, 11);
}

TEST_F(SweepFile, GroupsOfTheOptimizerAreAxes) {
  const SweepPlan plan = parse(
      "name: s\nbase: base.yaml\nset: {train.optimizer.groups: [{pattern: lm_head.weight, lr_factor: 1}]}\n"
      "axes: {train.optimizer.attn_res_lr_factor: [1, 0.1], train.optimizer.groups.0.lr_factor: [0.5, 2]}\n");
  ASSERT_EQ(plan.runs.size(), 4u);
  EXPECT_EQ(plan.runs[3].id.name, "attn_res_lr_factor_0.1-lr_factor_2-s1");
  EXPECT_EQ(plan.runs[3].config.train.optimizer.attn_res_lr_factor, 0.1);
  EXPECT_EQ(plan.runs[3].config.train.optimizer.groups.at(0).lr_factor, 2.0);
  EXPECT_EQ(
      refusal("name: s\nbase: base.yaml\naxes:\n  head:\n    half: {train.optimizer.groups: [{pattern: lm_head, "
              "lr_factor: 0.5}]}\n"),
      "s.yaml:5: run half-s1: train.optimizer.groups[0].pattern: 'lm_head' matches no tensor that is trained, expected "
      "a pattern over the whole name of one or more, such as lm_head.weight");
}

TEST_F(SweepFile, NamesMistakesByFileAndLine) {
  EXPECT_EQ(refusal("base: base.yaml\n"), "s.yaml: name: missing, expected a text");
  EXPECT_EQ(refusal("name: a\n"), "s.yaml: base: missing, expected a text");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\nseed: [1]\n"), "s.yaml:3: seed: unknown key, did you mean seeds?");
  EXPECT_EQ(refusal("name: a\nbase: none.yaml\n"), "s.yaml:2: base: none.yaml: no such file, expected an experiment");
  EXPECT_EQ(refusal("name: a/b\nbase: base.yaml\n"),
            "s.yaml:1: name: found 'a/b', expected a name of letters, digits and _ + . - that can be a folder's");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\naxes:\n  train.optimiser.lr: [1.0e-3]\n"),
            "s.yaml:4: train.optimiser: unknown key, did you mean optimizer?");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\naxes:\n  residual:\n    one: {model.residual: standart}\n"),
            "s.yaml:5: model.residual: found 'standart', expected one of standard, full_attnres, block_attnres, mhc; "
            "did you mean "
            "standard?");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\nset:\n  train.num_steps: 0\n"),
            "s.yaml:4: train.num_steps: found 0, expected at least 1");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\nset:\n  run.seed: 4\n"),
            "s.yaml:4: run.seed: is the sweep's own, expected another key (seeds are listed under seeds)");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\nseeds: [1, 1]\n"),
            "s.yaml:3: seeds: found 1 twice, expected each seed once");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\nseeds: [x]\n"),
            "s.yaml:3: seeds: found 'x', expected an integer, at least 0");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\nranks: 0\n"),
            "s.yaml:3: ranks: found '0', expected an integer, at least 1");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\naxes:\n  train.grad_clip: []\n"),
            "s.yaml:4: axes.train.grad_clip: found an empty list, expected named choices or a list of values");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\naxes:\n  model.mixers: [[kda]]\n"),
            "s.yaml:4: axes.model.mixers: found a list, expected a value; choices of several keys need names");
  EXPECT_EQ(
      refusal("name: a\nbase: base.yaml\nladder: {}\n"),
      "s.yaml:3: ladder: found an empty section, expected named sizes, each an experiment file or a section of keys");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\nladder: {large: large.yaml}\n"),
            "s.yaml:2: base: has no effect, every size of the ladder is an experiment file; remove it");
  EXPECT_EQ(refusal("name: a\nbase: base.yaml\naxes:\n  x: {b-c: {}, b: {}}\n  y: {d: {}, c-d: {}}\n"),
            "s.yaml:5: found two runs named b-c-d-s1, expected other names of sizes or choices");
}

TEST_F(SweepFile, SweepJsonRoundTrips) {
  const SweepPlan plan = parse("name: study\nbase: base.yaml\noutput_dir: " + (folder_.path() / "out").string() +
                               "\naxes: {x: {a: {}, b: {}}}\nseeds: [1, 18446744073]\n");
  std::filesystem::create_directories(plan.folder);
  EXPECT_FALSE(is_sweep(plan.folder));
  EXPECT_THAT(message_of([&] { read_sweep(plan.folder); }), HasSubstr("not a sweep's folder: found no sweep.json"));
  write_sweep(plan.data());
  ASSERT_TRUE(is_sweep(plan.folder));
  const SweepData read = read_sweep(plan.folder);
  EXPECT_EQ(read.name, "study");
  ASSERT_EQ(read.runs.size(), 4u);
  EXPECT_EQ(read.runs[3].name, "b-s18446744073");
  EXPECT_EQ(read.runs[3].variant, "b");
  EXPECT_EQ(read.runs[3].size, "");
  EXPECT_EQ(read.runs[3].seed, 18446744073u);
  io::write_file_atomically(plan.folder / "sweep.json",
                            std::string_view("{\"name\": \"x\", \"runs\": [{\"name\": \"y\"}]}"));
  EXPECT_THAT(message_of([&] { read_sweep(plan.folder); }), HasSubstr("found no text 'size'"));
  io::write_file_atomically(plan.folder / "sweep.json", std::string_view("{"));
  EXPECT_THAT(message_of([&] { read_sweep(plan.folder); }), HasSubstr("found no list of runs"));
}

}  // namespace
}  // namespace lamina::study
