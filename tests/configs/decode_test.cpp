#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>

#include "configs/schema/decode.h"
#include "configs/schema/nearest.h"
#include "configs/schema/reference.h"
#include "core/base/error.h"

namespace lamina {
namespace {

const std::string minimal =
    "model: {hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, kv_lora_rank: 16, qk_nope_head_dim: 8, "
    "v_head_dim: 16, intermediate_size: 96}\n"
    "data: {seq_len: 32, train: [{path: data/english}]}\n"
    "train: {num_steps: 100, global_batch_size: 8, micro_batch_size: 2, optimizer: {lr: 1e-3}}\n";

std::filesystem::path project_root() {
  return LAMINA_SOURCE_DIR;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Config parse(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  return parse_config(yaml, "a.yaml", overrides);
}

TEST(Decode, DefaultsFillWhatIsNotWritten) {
  const Config config = parse(minimal);
  EXPECT_EQ(config.run.name, "run");
  EXPECT_EQ(config.run.output_dir, "runs/run");
  EXPECT_EQ(config.run.seed, 1u);
  EXPECT_EQ(config.model.residual, Residual::block_attnres);
  EXPECT_EQ(config.model.attn_res_block_size, 2);
  EXPECT_FALSE(config.model.q_lora_rank.has_value());
  EXPECT_EQ(config.train.precision, Precision::bf16);
  EXPECT_EQ(config.train.optimizer.beta2, 0.95);
  EXPECT_EQ(config.data.train.at(0).weight, 1.0);
  EXPECT_EQ(config.checkpoint.keep, 3);
}

TEST(Decode, DerivedPathsFollowTheirKeys) {
  EXPECT_EQ(parse(minimal, {"run.name=x"}).run.output_dir, "runs/x");
  EXPECT_EQ(parse(minimal, {"run.name=x", "run.output_dir=/tmp/y"}).run.output_dir, "/tmp/y");
  EXPECT_EQ(parse(minimal, {"run.name=x", "debug.dump_step=3"}).debug.dump_path, "runs/x/dump-step-3.h5");
  EXPECT_EQ(parse(minimal).debug.dump_path, "");
}

TEST(Decode, NumbersInEveryUsualSpelling) {
  const auto lr = [](const std::string& text) {
    return parse(minimal, {"train.optimizer.lr=" + text}).train.optimizer.lr;
  };
  EXPECT_EQ(lr("1e-3"), 1e-3);
  EXPECT_EQ(lr("2.0e-3"), 2.0e-3);
  EXPECT_EQ(lr("2.0E-3"), 2.0e-3);
  EXPECT_EQ(lr("+.5"), 0.5);
  EXPECT_EQ(lr("3"), 3.0);
  EXPECT_EQ(parse(minimal, {"run.seed=18446744073709551615"}).run.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(parse(minimal, {"run.seed=+7"}).run.seed, 7u);
  EXPECT_EQ(parse(minimal, {"run.name=123"}).run.name, "123");  // a name may look like a number
}

TEST(Decode, OverridesApplyInOrder) {
  const Config config =
      parse(minimal, {"train.num_steps=5", "train.num_steps=7", "data.train.0.weight=2", "checkpoint.interval=3",
                      "model.q_lora_rank=32", "train.lr_schedule={name: cosine}"});
  EXPECT_EQ(config.train.num_steps, 7);
  EXPECT_EQ(config.data.train.at(0).weight, 2.0);
  EXPECT_EQ(config.checkpoint.interval, 3);
  EXPECT_EQ(config.checkpoint.minutes, 30.0);
  EXPECT_EQ(parse(minimal, {"checkpoint.minutes=0.25"}).checkpoint.minutes, 0.25);
  EXPECT_EQ(config.model.q_lora_rank, 32);
  EXPECT_EQ(config.train.lr_schedule.name, LrScheduleName::cosine);
}

TEST(Decode, OverridesReplaceLists) {
  const Config config = parse(minimal, {"data.train=[{path: a, weight: 3}, {path: \"b=c\"}]", "data.train.1.weight=4"});
  ASSERT_EQ(config.data.train.size(), 2u);
  EXPECT_EQ(config.data.train[0].path, "a");
  EXPECT_EQ(config.data.train[1].path, "b=c");
  EXPECT_EQ(config.data.train[1].weight, 4.0);
}

TEST(Decode, ParallelLayouts) {
  const Config plain = parse(minimal);
  EXPECT_EQ(plain.parallel.pipeline, 1);
  EXPECT_EQ(plain.parallel.virtual_stages, 1);
  EXPECT_EQ(plain.parallel.schedule, ScheduleName::interleaved_1f1b);
  EXPECT_EQ(plain.parallel.block_transport, BlockTransport::cached);
  EXPECT_TRUE(plain.parallel.split.empty());

  const Config config = parse(minimal +
                              "parallel: {pipeline: 2, virtual_stages: 2, data: 3, schedule: zero_bubble, "
                              "block_transport: full, split: [0, 1, 2, 1]}\n");
  EXPECT_EQ(config.parallel.pipeline, 2);
  EXPECT_EQ(config.parallel.virtual_stages, 2);
  EXPECT_EQ(config.parallel.data, 3);
  EXPECT_EQ(config.parallel.schedule, ScheduleName::zero_bubble);
  EXPECT_EQ(config.parallel.block_transport, BlockTransport::full);
  EXPECT_EQ(config.parallel.split, (std::vector<int64_t>{0, 1, 2, 1}));
  EXPECT_EQ(parse(minimal, {"parallel.schedule=1f1b"}).parallel.schedule, ScheduleName::one_f_one_b);
  EXPECT_EQ(parse(minimal, {"parallel.schedule=gpipe"}).parallel.schedule, ScheduleName::gpipe);
}

TEST(Decode, SplitIsAWordOrAList) {
  const auto split = [](const std::vector<std::string>& overrides) { return parse(minimal, overrides).parallel.split; };
  const std::vector<std::string> layout = {"parallel.pipeline=4", "model.num_hidden_layers=10"};
  EXPECT_EQ(split({layout[0], layout[1], "parallel.split=[3,3,2,2]"}), (std::vector<int64_t>{3, 3, 2, 2}));
  EXPECT_EQ(split({layout[0], layout[1], "parallel.split=[3,3,2,2]", "parallel.split.1=2", "parallel.split.3=3"}),
            (std::vector<int64_t>{3, 2, 2, 3}));
  EXPECT_TRUE(split({layout[0], layout[1], "parallel.split=[3,3,2,2]", "parallel.split=auto"}).empty());
  EXPECT_TRUE(split({layout[0], layout[1], "parallel.split=[3,3,2,2]", "parallel.split=null"}).empty());
  // The outer chunks may be empty: the embedding alone, the head alone.
  EXPECT_EQ(split({"parallel.pipeline=6", "parallel.split=[0,1,1,1,1,0]"}).size(), 6u);
  EXPECT_EQ(split({"parallel.pipeline=2", "parallel.split=[0,4]"}), (std::vector<int64_t>{0, 4}));
  EXPECT_NO_THROW(split({"parallel.pipeline=6"}));
}

const std::vector<std::string> hybrid = {"model.mixers=[kda, kda, mla]",  "model.linear_num_heads=2",
                                         "model.linear_head_dim=8",       "model.gate_lower_bound=-5",
                                         "model.num_experts=8",           "model.first_k_dense_replace=2",
                                         "model.num_experts_per_token=3", "model.moe_intermediate_size=24",
                                         "model.aux_loss_alpha=1e-4",     "parallel.expert=4"};

TEST(Decode, HybridModels) {
  const Config config = parse(minimal, hybrid);
  const ModelConfig& model = config.model;
  EXPECT_EQ(model.mixer(0), Mixer::kda);
  EXPECT_EQ(model.mixer(2), Mixer::mla);
  EXPECT_EQ(model.mixer(3), Mixer::kda);  // the pattern repeats
  EXPECT_FALSE(model.is_moe(1));
  EXPECT_TRUE(model.is_moe(2));
  EXPECT_EQ(model.gate_lower_bound, -5.0);
  EXPECT_EQ(model.short_conv_kernel_size, 4);
  EXPECT_EQ(model.num_shared_experts, 1);
  EXPECT_TRUE(model.moe_renormalize);
  EXPECT_EQ(config.parallel.expert, 4);
  EXPECT_EQ(parse(minimal).model.mixer(5), Mixer::mla);
  EXPECT_FALSE(parse(minimal).model.is_moe(3));
  const Config again = parse(to_yaml(config));
  EXPECT_EQ(to_yaml(again), to_yaml(config));
  EXPECT_EQ(again.model.mixers, model.mixers);
  EXPECT_EQ(again.model.first_k_dense_replace, 2);
  EXPECT_THAT(to_yaml(config), testing::HasSubstr("  mixers: [kda, kda, mla]\n"));
}

TEST(Decode, TrainingOfHybridModels) {
  const Config plain = parse(minimal);
  EXPECT_EQ(plain.train.optimizer.name, OptimizerName::adamw);
  EXPECT_FALSE(plain.data.document_mask);
  EXPECT_EQ(plain.checkpoint.init_from, "");
  EXPECT_EQ(plain.logging.peak_gflops, 0);
  EXPECT_THAT(to_yaml(plain), testing::Not(testing::HasSubstr("momentum")));
  EXPECT_THAT(to_yaml(plain), testing::Not(testing::HasSubstr("router_bias_rate")));

  std::vector<std::string> overrides = hybrid;
  overrides.insert(overrides.end(), {"train.optimizer.name=muon", "data.document_mask=true",
                                     "checkpoint.init_from=runs/a", "logging={peak_gflops: 150.5}"});
  const Config defaults = parse(minimal, overrides);
  EXPECT_EQ(defaults.train.optimizer.momentum, 0.95);
  EXPECT_EQ(defaults.train.optimizer.qk_clip, 100);
  EXPECT_EQ(defaults.train.router_bias_rate, 1e-3);
  overrides.insert(overrides.end(),
                   {"train.optimizer.momentum=0.9", "train.optimizer.qk_clip=0", "train.router_bias_rate=2e-3"});
  const Config config = parse(minimal, overrides);
  const Config again = parse(to_yaml(config));
  EXPECT_EQ(to_yaml(again), to_yaml(config));
  EXPECT_EQ(again.train.optimizer.name, OptimizerName::muon);
  EXPECT_EQ(again.train.optimizer.momentum, 0.9);
  EXPECT_EQ(again.train.optimizer.qk_clip, 0);
  EXPECT_EQ(again.train.router_bias_rate, 2e-3);
  EXPECT_TRUE(again.data.document_mask);
  EXPECT_EQ(again.checkpoint.init_from, "runs/a");
  EXPECT_EQ(again.logging.peak_gflops, 150.5);
}

TEST(Decode, GroupsOfTheOptimizer) {
  EXPECT_THAT(to_yaml(parse(minimal)), testing::Not(testing::HasSubstr("groups")));
  EXPECT_THAT(to_yaml(parse(minimal)),
              testing::HasSubstr("    attn_res_lr_factor: 1\n"));  // 0.15 / (1e-3 x 64) is more
  const Config config = parse(minimal, {"train.optimizer.groups=[{pattern: '*norm*', weight_decay: 0}, {pattern: "
                                        "lm_head.weight, lr_factor: 0.5, rule: muon}]",
                                        "train.optimizer.groups.1.lr_factor=0.25"});
  const std::vector<OptimizerGroupConfig>& groups = config.train.optimizer.groups;
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].pattern, "*norm*");
  EXPECT_EQ(groups[0].weight_decay, 0.0);
  EXPECT_FALSE(groups[0].lr_factor || groups[0].rule);
  EXPECT_EQ(groups[1].lr_factor, 0.25);
  EXPECT_EQ(groups[1].rule, OptimizerName::muon);
  EXPECT_THAT(to_yaml(config), testing::HasSubstr("    momentum: 0.95\n"));  // a group has Muon
  EXPECT_THAT(to_yaml(config), testing::HasSubstr("    groups:\n"
                                                  "      - pattern: \"*norm*\"\n"
                                                  "        weight_decay: 0\n"
                                                  "      - pattern: lm_head.weight\n"
                                                  "        lr_factor: 0.25\n"
                                                  "        rule: muon\n"));
  EXPECT_EQ(to_yaml(parse(to_yaml(config))), to_yaml(config));
}

TEST(Decode, WithoutDenseLayersTheDenseWidthGoes) {
  std::vector<std::string> overrides = hybrid;
  overrides.push_back("model.first_k_dense_replace=0");
  EXPECT_THROW(parse(minimal, overrides), Error);
  overrides.push_back("model.intermediate_size=null");
  const Config config = parse(minimal, overrides);
  EXPECT_THAT(to_yaml(config), testing::Not(testing::HasSubstr("  intermediate_size")));
  EXPECT_EQ(to_yaml(parse(to_yaml(config))), to_yaml(config));
}

TEST(Decode, NullOnTheCommandLineRemovesAKey) {
  const std::vector<std::string> given = {"model.attn_res_block_size=4", "model.residual=standard"};
  EXPECT_THROW(parse(minimal, given), Error);
  const Config config = parse(minimal, {given[0], given[1], "model.attn_res_block_size=null"});
  EXPECT_EQ(config.model.attn_res_block_size, 2);
  EXPECT_EQ(parse(minimal, {"train.grad_clip=5", "train.grad_clip="}).train.grad_clip, 1.0);
  EXPECT_FALSE(parse(minimal, {"model.q_lora_rank=5", "model.q_lora_rank=~"}).model.q_lora_rank.has_value());
}

TEST(Decode, NullInTheFileMeansAbsentWhereAKeyMayBe) {
  std::string yaml = minimal;
  yaml.replace(yaml.find("{hidden"), 1, "{q_lora_rank: null, ");
  EXPECT_FALSE(parse(yaml).model.q_lora_rank.has_value());
  EXPECT_NO_THROW(parse(yaml + "checkpoint:\n"));  // a section without keys
}

TEST(Decode, ReadsTheExamples) {
  for (const auto& entry : std::filesystem::recursive_directory_iterator(project_root() / "configs")) {
    const std::string folder = entry.path().parent_path().filename();
    if (entry.path().extension() != ".yaml" || folder == "sweeps" || folder == "devices") continue;
    EXPECT_NO_THROW(load_config(entry.path().string())) << entry.path();
  }
  const Config tiny = load_config((project_root() / "configs/tiny.yaml").string());
  EXPECT_EQ(tiny.run.name, "tiny");
  EXPECT_EQ(tiny.data.validation.num_sequences, 64);
}

// ---- Writing ----

void expect_same(const Config& a, const Config& b) {
  // Every number is written with enough digits to tell it from its neighbours, so equal texts are equal values.
  EXPECT_EQ(to_yaml(a), to_yaml(b));
  EXPECT_EQ(a.train.optimizer.lr, b.train.optimizer.lr);
  EXPECT_EQ(a.run.name, b.run.name);
  EXPECT_EQ(a.run.output_dir, b.run.output_dir);
  EXPECT_EQ(a.debug.dump_path, b.debug.dump_path);
  EXPECT_EQ(a.model.q_lora_rank, b.model.q_lora_rank);
  EXPECT_EQ(a.model.attn_res_block_size, b.model.attn_res_block_size);
  EXPECT_EQ(a.train.lr_schedule.decay_steps, b.train.lr_schedule.decay_steps);
  EXPECT_EQ(a.train.lr_schedule.min_lr_ratio, b.train.lr_schedule.min_lr_ratio);
  ASSERT_EQ(a.data.train.size(), b.data.train.size());
  for (size_t i = 0; i < a.data.train.size(); ++i) {
    EXPECT_EQ(a.data.train[i].path, b.data.train[i].path);
    EXPECT_EQ(a.data.train[i].weight, b.data.train[i].weight);
  }
}

TEST(Write, RoundTripsEveryScheme) {
  for (const char* residual : {"standard", "full_attnres", "block_attnres", "mhc"})
    for (const char* schedule : {"constant", "wsd", "cosine"})
      for (const char* validation : {"{}", "{path: x, num_sequences: 3}"}) {
        const Config config = parse(
            minimal, {fmt::format("model.residual={}", residual), fmt::format("train.lr_schedule.name={}", schedule),
                      fmt::format("data.validation={}", validation)});
        expect_same(parse(to_yaml(config)), config);
      }
}

TEST(Write, RoundTripsLayouts) {
  for (const char* schedule : {"gpipe", "interleaved_1f1b", "zero_bubble"})
    for (const char* transport : {"cached", "full"})
      for (const char* split : {"auto", "[1, 1, 0]", "[0, 1, 1]"}) {
        const Config config = parse(
            minimal, {"model.num_hidden_layers=2", "parallel.pipeline=3", fmt::format("parallel.schedule={}", schedule),
                      fmt::format("parallel.block_transport={}", transport), fmt::format("parallel.split={}", split)});
        const std::string yaml = to_yaml(config);
        const Config again = parse(yaml);
        expect_same(again, config);
        EXPECT_EQ(again.parallel.schedule, config.parallel.schedule);
        EXPECT_EQ(again.parallel.block_transport, config.parallel.block_transport);
        EXPECT_EQ(again.parallel.split, config.parallel.split);
        EXPECT_THAT(yaml, testing::HasSubstr(fmt::format("  split: {}\n", split)));
      }
  EXPECT_THAT(to_yaml(parse(minimal, {"model.residual=standard"})),
              testing::Not(testing::HasSubstr("block_transport")));
}

TEST(Write, RoundTripsDoublesExactly) {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<double> exponent(-30, 30);
  for (int i = 0; i < 1000; ++i) {
    Config config = parse(minimal);
    config.train.optimizer.lr = std::pow(10.0, exponent(random));
    config.data.train[0].weight = std::pow(10.0, exponent(random));
    config.train.optimizer.beta1 = std::generate_canonical<double, 53>(random);
    const Config again = parse(to_yaml(config));
    ASSERT_EQ(again.train.optimizer.lr, config.train.optimizer.lr);
    ASSERT_EQ(again.data.train[0].weight, config.data.train[0].weight);
    ASSERT_EQ(again.train.optimizer.beta1, config.train.optimizer.beta1);
  }
}

TEST(Write, RoundTripsAwkwardTexts) {
  for (const std::string text :
       {"null",        "~",         "true",        "5",    "1e3", "a b", "a: b", "#x",   "a #b", "it's", "say \"hi\"",
        "back\\slash", "tab\there", "line\nbreak", "\x01", "[x]", "{x}", "- x",  "*x",   "&x",   "!x",   " x ",
        "ümläut",      "./x",       "../x",        "...",  "---", "%x",  "@x",   "NULL", ""}) {
    Config config = parse(minimal);
    config.debug.dump_step = 1;
    config.debug.dump_path = text.empty() ? "x" : text;
    config.run.output_dir = text.empty() ? "y" : text;
    config.data.train.push_back({text.empty() ? "z" : text, 1.0});
    expect_same(parse(to_yaml(config)), config);
  }
}

TEST(Write, IsTheSameTwice) {
  const Config tiny = load_config((project_root() / "configs/tiny.yaml").string());
  EXPECT_EQ(to_yaml(parse(to_yaml(tiny))), to_yaml(tiny));
}

// ---- Reference ----

// Frozen: checkpoints and users' files hold these names. A key may be added; one that goes away needs an error that
// tells what replaces it.
TEST(Reference, AllKeys) {
  EXPECT_THAT(
      configuration_keys(),
      testing::ElementsAre(
          "run.name", "run.seed", "run.output_dir", "run.device", "run.num_threads", "model.vocab_size",
          "model.hidden_size", "model.num_hidden_layers", "model.rms_norm_eps", "model.tie_word_embeddings",
          "model.initializer_range", "model.mup_base_width", "model.residual", "model.attn_res_block_size",
          "model.num_residual_streams", "model.mixers", "model.num_attention_heads", "model.q_lora_rank",
          "model.kv_lora_rank", "model.kv_a_layernorm_eps", "model.qk_nope_head_dim", "model.qk_rope_head_dim",
          "model.v_head_dim", "model.linear_num_heads", "model.linear_head_dim", "model.short_conv_kernel_size",
          "model.gate_lower_bound", "model.intermediate_size", "model.num_experts", "model.first_k_dense_replace",
          "model.num_experts_per_token", "model.num_shared_experts", "model.moe_intermediate_size",
          "model.routed_scaling_factor", "model.moe_renormalize", "model.aux_loss_alpha", "data.seq_len",
          "data.train[].path", "data.train[].weight", "data.validation.path", "data.validation.num_sequences",
          "data.validation.interval", "data.document_mask", "data.piece_len", "parallel.pipeline",
          "parallel.virtual_stages", "parallel.data", "parallel.expert", "parallel.schedule",
          "parallel.block_transport", "parallel.gpu_transport", "parallel.split", "parallel.timeout_seconds",
          "train.num_steps", "train.global_batch_size", "train.micro_batch_size", "train.precision",
          "train.bf16_products", "train.recompute", "train.grad_clip", "train.router_bias_rate", "train.max_minutes",
          "train.on_spike", "train.spike_threshold", "train.max_spikes", "train.skip_steps", "train.batch_ramp.from",
          "train.batch_ramp.steps", "train.batch_ramp.increment", "train.optimizer.name", "train.optimizer.lr",
          "train.optimizer.weight_decay", "train.optimizer.momentum", "train.optimizer.qk_clip",
          "train.optimizer.beta1", "train.optimizer.beta2", "train.optimizer.eps", "train.optimizer.attn_res_lr_factor",
          "train.optimizer.groups[].pattern", "train.optimizer.groups[].lr_factor",
          "train.optimizer.groups[].weight_decay", "train.optimizer.groups[].rule", "train.lr_schedule.name",
          "train.lr_schedule.warmup_steps", "train.lr_schedule.decay_steps", "train.lr_schedule.min_lr_ratio",
          "train.eval.tasks", "train.eval.interval", "stages[].from_step", "stages[].global_batch_size",
          "stages[].micro_batch_size", "stages[].seq_len", "stages[].weights", "stages[].lr_factor",
          "checkpoint.interval", "checkpoint.minutes", "checkpoint.keep", "checkpoint.init_from", "logging.interval",
          "logging.layer_stats_interval", "logging.peak_gflops", "logging.tensorboard", "logging.trace_steps",
          "debug.dump_step", "debug.dump_path"));
}

// After a change of a key: LAMINA_UPDATE_DOCS=1 tests_configs writes the page anew.
TEST(Reference, ThePageIsCurrent) {
  const std::filesystem::path page = project_root() / "docs/configuration.md";
  if (std::getenv("LAMINA_UPDATE_DOCS")) std::ofstream(page, std::ios::binary) << configuration_reference();
  EXPECT_EQ(read_file(page), configuration_reference()) << "write it anew with LAMINA_UPDATE_DOCS=1 tests_configs";
}

TEST(Nearest, FindsSlipsAndNothingFarAway) {
  const std::vector<std::string> names = {"num_steps", "hidden_size", "global_batch_size", "lr"};
  EXPECT_EQ(nearest_name("num_setps", names), "num_steps");
  EXPECT_EQ(nearest_name("hidden", names), "hidden_size");
  EXPECT_EQ(nearest_name("batch_size", names), "global_batch_size");
  EXPECT_EQ(nearest_name("rl", names), "lr");
  EXPECT_EQ(nearest_name("momentum", names), std::nullopt);
  EXPECT_EQ(nearest_name("x", {}), std::nullopt);
}

}  // namespace
}  // namespace lamina
