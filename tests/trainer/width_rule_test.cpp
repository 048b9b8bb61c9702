// The maximal-update rule: its factors against the table of Tensor Programs V, and what they are for: how far a step takes a model does
// not depend on its width.
#include "model/width_rule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/rng.h"
#include "model/optimizers/optimizer.h"
#include "parallel/comm/thread.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

constexpr int64_t base = 32;

// Kimi Delta Attention, latent attention, dense and routed MLPs; heads, ranks, experts and vocabulary are the same at every width.
Config of_width(int64_t width, OptimizerName rule, bool mup) {
  Config c;
  c.run.seed = 3;
  ModelConfig& m = c.model;
  m.vocab_size = 40;
  m.hidden_size = width;
  m.num_hidden_layers = 4;
  m.residual = Residual::block_attnres;
  m.attn_res_block_size = 2;
  m.mixers = {Mixer::kda, Mixer::mla};
  m.num_attention_heads = static_cast<int>(width / 8);
  m.kv_lora_rank = 12;
  m.qk_nope_head_dim = 8;
  m.v_head_dim = 8;
  m.linear_num_heads = static_cast<int>(width / 16);
  m.linear_head_dim = 16;
  m.intermediate_size = 2 * width;
  m.num_experts = 4;
  m.num_experts_per_token = 2;
  m.num_shared_experts = 1;
  m.moe_intermediate_size = width / 2;
  m.first_k_dense_replace = 1;
  m.initializer_range = 0.15;
  if (mup) m.mup_base_width = base;
  c.data.seq_len = 24;
  c.train.global_batch_size = 4;
  c.train.micro_batch_size = 4;
  c.train.precision = Precision::fp32;
  c.train.optimizer.name = rule;
  c.train.optimizer.lr = rule == OptimizerName::muon ? 4e-4 : 1e-4;
  c.train.optimizer.weight_decay = 0;
  c.train.optimizer.attn_res_lr_factor = default_attn_res_lr_factor(c);
  return c;
}

// How much a few steps on one batch lower its loss, in nats per token. The rate is low, so this is the sum of what each tensor's
// update does.
double descent(const Config& c) {
  const auto count = static_cast<size_t>(c.train.global_batch_size * c.data.seq_len);
  const CounterRng rng(9, "tokens");
  std::vector<int32_t> tokens(count + 1);
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(c.model.vocab_size)));
  double first = 0, last = 0;
  comm::run_threads(1, [&](comm::Communicator& comm) {
    Engine engine(c, comm, nullptr);
    engine.initialise();
    for (int step = 0; step < 4; ++step) {
      last = engine.accumulate_gradients(std::span(tokens).first(count), std::span(tokens).last(count),
                                         1.0 / static_cast<double>(count)) /
             static_cast<double>(count);
      if (step == 0) first = last;
      engine.update(step + 1, c.train.optimizer.lr, 1e9);
    }
  });
  return first - last;
}

TEST(WidthRule, AStepTakesEveryWidthEquallyFar) {
  for (const OptimizerName rule : {OptimizerName::adamw, OptimizerName::muon}) {
    SCOPED_TRACE(rule == OptimizerName::muon ? "muon" : "adamw");
    const double at_base = descent(of_width(base, rule, true));
    EXPECT_GT(at_base, 0);
    const double with = descent(of_width(4 * base, rule, true)) / at_base;
    const double without = descent(of_width(4 * base, rule, false)) / at_base;
    RecordProperty(rule == OptimizerName::muon ? "muon" : "adamw", fmt::format("{:.2f} {:.2f}", with, without));
    EXPECT_GT(with, 0.5);
    EXPECT_LT(with, 2);
    EXPECT_GT(without, 3) << "what the rule is there for";
  }
}

std::map<std::string, model::UpdateRule> rules_of(const Config& config) {
  const std::vector<model::ParameterSpec> specs = model::parameter_specs(config.model);
  const std::vector<model::UpdateRule> rules = model::update_rules(config, specs);
  std::map<std::string, model::UpdateRule> by_name;
  for (size_t i = 0; i < specs.size(); ++i) by_name[specs[i].name] = rules[i];
  return by_name;
}

std::map<std::string, double> initial_scales(const Config& config) {
  std::map<std::string, double> by_name;
  for (const model::ParameterSpec& spec : model::parameter_specs(config.model)) by_name[spec.name] = spec.init_scale;
  return by_name;
}

// Four times as wide as the base.
TEST(WidthRule, FactorsAreThoseOfTensorProgramsV) {
  const auto adamw = rules_of(of_width(4 * base, OptimizerName::adamw, true));
  const auto init = initial_scales(of_width(4 * base, OptimizerName::adamw, true));
  struct Row {
    const char* name;
    double init, adamw;
  };
  for (const Row& row : {
           Row{"model.embed_tokens.weight", 1, 1},
           {"lm_head.weight", 0.25, 0.25},
           {"model.layers.0.self_attn.q_proj.weight", 0.5, 0.25},
           {"model.layers.0.self_attn.b_proj.weight", 0.5, 0.25},
           {"model.layers.0.self_attn.f_a_proj.weight", 0.25, 0.25},
           {"model.layers.0.self_attn.f_b_proj.weight", 1, 1},
           {"model.layers.0.self_attn.q_conv1d.weight", 1, 1},
           {"model.layers.1.self_attn.kv_a_proj_with_mqa.weight", 0.25, 0.25},
           {"model.layers.1.self_attn.kv_b_proj.weight", 1, 1},
           {"model.layers.1.self_attn.o_proj.weight", 0.5, 0.25},
           {"model.layers.0.mlp.down_proj.weight", 0.5, 0.25},
           {"model.layers.1.block_sparse_moe.gate.weight", 0.25, 0.25},
           {"model.layers.1.block_sparse_moe.experts.2.w2.weight", 0.5, 0.25},
           {"model.norm.weight", 1, 1},
       }) {
    EXPECT_DOUBLE_EQ(init.at(row.name), row.init) << row.name;
    EXPECT_DOUBLE_EQ(adamw.at(row.name).lr_factor, row.adamw) << row.name;
  }
}

// An update of Muon is an orthogonal matrix times 0.2 sqrt(longer side); with the factor, its spectral norm over sqrt(out / in) must be the
// base's at every width.
TEST(WidthRule, MuonsUpdatesKeepTheirSpectralNormOverThatOfTheShape) {
  const auto relative_norms = [](int64_t width) {
    const Config config = of_width(width, OptimizerName::muon, true);
    const auto rules = rules_of(config);
    std::map<std::string, double> norms;
    for (const model::ParameterSpec& spec : model::parameter_specs(config.model)) {
      const model::UpdateRule& rule = rules.at(spec.name);
      if (rule.optimizer != &model::optimizer_of(OptimizerName::muon)) continue;
      const auto out = static_cast<double>(spec.shape[0]), in = static_cast<double>(spec.shape[1]);
      norms[spec.name] = rule.lr_factor * 0.2 * std::sqrt(std::max(out, in)) / std::sqrt(out / in);
    }
    return norms;
  };
  const auto at_base = relative_norms(base);
  EXPECT_GT(at_base.size(), 20u);
  for (const int64_t width : {16, 64, 256})
    for (const auto& [name, norm] : relative_norms(width))
      EXPECT_NEAR(norm / at_base.at(name), 1, 1e-12) << name << " " << width;
}

TEST(WidthRule, IsOneAtTheBaseAndWithoutIt) {
  for (const OptimizerName rule : {OptimizerName::adamw, OptimizerName::muon}) {
    EXPECT_EQ(rules_of(of_width(base, rule, true)), rules_of(of_width(base, rule, false)));
    EXPECT_EQ(initial_scales(of_width(base, rule, true)), initial_scales(of_width(4 * base, rule, false)));
  }
}

// A step takes away rate x factor x decay.
TEST(WidthRule, LeavesWeightDecayAsItIsAndMultipliesAGroupsFactor) {
  Config config = of_width(4 * base, OptimizerName::adamw, true);
  config.train.optimizer.weight_decay = 0.1;
  config.train.optimizer.groups = {{"*.mlp.*", 0.5, {}, {}}};
  const model::UpdateRule rule = rules_of(config).at("model.layers.0.mlp.up_proj.weight");
  EXPECT_DOUBLE_EQ(rule.lr_factor, 0.5 * 0.25);
  EXPECT_DOUBLE_EQ(rule.lr_factor * rule.weight_decay, 0.5 * 0.1);
}

TEST(WidthRule, RefusesATiedHead) {
  const std::string text =
      "model: {vocab_size: 31, hidden_size: 16, num_hidden_layers: 1, residual: standard, num_attention_heads: 2, "
      "kv_lora_rank: 6,\n"
      "        qk_nope_head_dim: 4, v_head_dim: 5, intermediate_size: 20, mup_base_width: 8, tie_word_embeddings: "
      "true}\n"
      "data: {seq_len: 16, train: [{path: data/none}]}\n"
      "train: {num_steps: 10, global_batch_size: 2, micro_batch_size: 1, optimizer: {lr: 0.05}}\n";
  try {
    parse_config(text, "a.yaml", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("model.mup_base_width: found 8, expected no such key with "
                                                 "model.tie_word_embeddings: true"));
  }
}

}  // namespace
}  // namespace lamina
