// Which rule, factor and decay each tensor gets, and what a group may not say.
#include "model/update_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "configs/schema/decode.h"
#include "configs/schema/keys.h"
#include "core/base/error.h"
#include "model/optimizers/adamw.h"
#include "model/optimizers/muon.h"

namespace lamina::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const Optimizer* const adamw = &adamw_optimizer();
const Optimizer* const muon = &muon_optimizer();

const std::string experiment =
    "model: {vocab_size: 31, hidden_size: 16, num_hidden_layers: 3, residual: block_attnres, attn_res_block_size: 2,\n"
    "        num_attention_heads: 2, kv_lora_rank: 6, qk_nope_head_dim: 4, v_head_dim: 5, intermediate_size: 20,\n"
    "        mixers: [kda, mla], linear_num_heads: 2, linear_head_dim: 16, num_experts: 4, num_experts_per_token: 2,\n"
    "        moe_intermediate_size: 7}\n"
    "data: {seq_len: 16, train: [{path: data/none}]}\n"
    "train: {num_steps: 10, global_batch_size: 2, micro_batch_size: 1, optimizer: {name: muon, lr: 0.05}}\n";

Config parse(const std::vector<std::string>& overrides = {}) {
  return parse_config(experiment, "a.yaml", overrides);
}

std::map<std::string, UpdateRule> rules_of(const std::vector<std::string>& overrides = {}) {
  const Config config = parse(overrides);
  const std::vector<ParameterSpec> specs = parameter_specs(config.model);
  const std::vector<UpdateRule> rules = update_rules(config, specs);
  std::map<std::string, UpdateRule> by_name;
  for (size_t i = 0; i < specs.size(); ++i) by_name[specs[i].name] = rules[i];
  return by_name;
}

std::string message_of(const std::string& groups) {
  try {
    rules_of({"train.optimizer.groups=" + groups});
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(UpdateRules, EveryNameOfTheFileHasAnOptimizer) {
  const auto& names = schema::enum_names<OptimizerName>::value;
  ASSERT_EQ(optimizers().size(), names.size());
  for (size_t i = 0; i < names.size(); ++i) EXPECT_EQ(optimizers()[i]->facts().name, names[i].second) << names[i].first;
}

TEST(UpdateRules, StateTakesTheBytesOfItsDtypes) {
  class Half final : public Optimizer {
   public:
    Half() : Optimizer({.title = "Half", .state = {{"m", DType::bf16}, {"v"}}}) {}
    double width_factor(const WidthFactors&) const override { return 1; }
    std::vector<Operation> operations(const ShapeCounts&, const ElementSizes&, double) const override { return {}; }
    std::unique_ptr<GroupUpdate> make_update(const GroupTensors&) const override { return nullptr; }
  };
  EXPECT_EQ(Half().state_bytes(4), 2 + 4);
  EXPECT_EQ(Half().state_bytes(8), 2 + 8);
  EXPECT_EQ(adamw->state_bytes(4), 8);
  EXPECT_EQ(muon->state_bytes(8), 8);
}

TEST(UpdateRules, WithoutGroups) {
  const auto rules = rules_of();
  EXPECT_EQ(rules.at("model.layers.1.self_attn.o_proj.weight"), (UpdateRule{muon, 1, 0.1}));
  EXPECT_EQ(rules.at("model.layers.1.block_sparse_moe.experts.3.w2.weight"), (UpdateRule{muon, 1, 0.1}));
  EXPECT_EQ(rules.at("model.embed_tokens.weight"), (UpdateRule{adamw, 1, 0.1}));
  EXPECT_EQ(rules.at("model.norm.weight"), (UpdateRule{adamw, 1, 0.1}));
  EXPECT_EQ(rules.at("model.layers.0.self_attn.A_log"), (UpdateRule{adamw, 1, 0}));
  EXPECT_EQ(rules.at("model.layers.1.block_sparse_moe.gate.e_score_correction_bias"), UpdateRule{});
  // 0.15 over lr x hidden_size = 0.8.
  for (const char* name :
       {"layers.0.self_attention_res_proj", "layers.2.mlp_res_norm", "output_attn_res_proj", "output_attn_res_norm"})
    EXPECT_EQ(rules.at(fmt::format("model.{}.weight", name)), (UpdateRule{adamw, 0.15 / 0.8, 0.1})) << name;
}

TEST(UpdateRules, TheDefaultForDepthQueriesFollowsRateAndWidthAndIsAtMostOne) {
  const auto factor = [](const std::vector<std::string>& overrides) {
    return parse(overrides).train.optimizer.attn_res_lr_factor;
  };
  EXPECT_DOUBLE_EQ(*factor({"train.optimizer.lr=0.1"}), 0.09375);
  EXPECT_DOUBLE_EQ(*factor({"model.hidden_size=64"}), 0.046875);
  EXPECT_DOUBLE_EQ(*factor({"train.optimizer={lr: 0.0003}"}), 1);  // rates of AdamW at this width
  EXPECT_DOUBLE_EQ(*factor({"train.optimizer.attn_res_lr_factor=0.7"}), 0.7);
  EXPECT_EQ(factor({"model.residual=standard", "model.attn_res_block_size=null"}), std::nullopt);
  EXPECT_EQ(rules_of({"train.optimizer.attn_res_lr_factor=0.7"}).at("model.output_attn_res_norm.weight").lr_factor,
            0.7);
}

TEST(UpdateRules, OfGroupsThatMatchTheLastOneThatGivesAKeyDecidesIt) {
  const auto rules =
      rules_of({"train.optimizer.groups=[{pattern: 'model.*', lr_factor: 0.5, weight_decay: 0.01}, {pattern: "
                "'*res_proj.weight', "
                "lr_factor: 2}, {pattern: 'model.layers.?.mlp_res_proj.weight', weight_decay: 0}, {pattern: "
                "'*.experts.[0-1].w?.weight', "
                "rule: adamw}, {pattern: lm_head.weight, rule: muon}]"});
  EXPECT_EQ(rules.at("model.layers.1.self_attn.o_proj.weight"), (UpdateRule{muon, 0.5, 0.01}));
  EXPECT_EQ(rules.at("model.layers.1.mlp_res_norm.weight"), (UpdateRule{adamw, 0.5, 0.01}));  // not the built-in one
  EXPECT_EQ(rules.at("model.layers.1.mlp_res_proj.weight"), (UpdateRule{adamw, 2, 0}));
  EXPECT_EQ(rules.at("model.output_attn_res_proj.weight"), (UpdateRule{adamw, 2, 0.01}));
  EXPECT_EQ(rules.at("model.layers.0.self_attn.dt_bias"), (UpdateRule{adamw, 0.5, 0.01}));
  EXPECT_EQ(rules.at("model.layers.1.block_sparse_moe.experts.1.w2.weight"), (UpdateRule{adamw, 0.5, 0.01}));
  EXPECT_EQ(rules.at("model.layers.1.block_sparse_moe.experts.2.w2.weight"), (UpdateRule{muon, 0.5, 0.01}));
  EXPECT_EQ(rules.at("lm_head.weight"), (UpdateRule{muon, 1, 0.1}));
  EXPECT_EQ(rules.at("model.layers.1.block_sparse_moe.gate.e_score_correction_bias"), UpdateRule{});
}

TEST(UpdateRules, Mistakes) {
  EXPECT_EQ(
      message_of("[{pattern: '*_res_proj', lr_factor: 0.1}]"),
      "train.optimizer.groups[0].pattern: '*_res_proj' matches no tensor that is trained, expected a pattern over the "
      "whole name of one or more");
  EXPECT_THAT(message_of("[{pattern: model.layers.*.mlp_res_proj.weigth, lr_factor: 0.1}]"),
              HasSubstr(", such as model.layers.*.mlp_res_proj.weight"));
  EXPECT_THAT(message_of("[{pattern: '*e_score_correction_bias', lr_factor: 0.1}]"), HasSubstr("matches no tensor"));
  EXPECT_EQ(
      message_of("[{pattern: '*norm.weight', lr_factor: 0.1, weight_decay: 0}, {pattern: '*', lr_factor: 1}]"),
      "train.optimizer.groups[0].lr_factor: has no effect: later groups give one to every tensor that '*norm.weight' "
      "matches; remove it");
  EXPECT_EQ(
      message_of("[{pattern: '*.experts.*', rule: adamw}, {pattern: '*norm.weight', rule: muon}]"),
      "train.optimizer.groups[1].rule: found muon for model.layers.0.self_attention_res_norm.weight [16], expected "
      "matrices only");
}

TEST(UpdateRules, AreToldInALineForEach) {
  const Config config = parse({"train.optimizer.groups=[{pattern: lm_head.weight, lr_factor: 0.25}]"});
  EXPECT_THAT(
      describe_update_rules(config),
      ElementsAre(
          "adamw, lr 0.05 x 1, weight decay 0.1: 17 tensors (model.embed_tokens.weight, "
          "model.layers.*.input_layernorm.weight, "
          "model.layers.*.self_attn.q_conv1d.weight, model.layers.*.self_attn.k_conv1d.weight, 5 more)",
          "adamw, lr 0.05 x 0.1875, weight decay 0.1: 14 tensors (model.layers.*.self_attention_res_norm.weight, "
          "model.layers.*.self_attention_res_proj.weight, model.layers.*.mlp_res_norm.weight, "
          "model.layers.*.mlp_res_proj.weight, 2 more)",
          HasSubstr("muon, lr 0.05 x 1, weight decay 0.1: "),
          "adamw, lr 0.05 x 1, weight decay 0: 4 tensors (model.layers.*.self_attn.A_log, "
          "model.layers.*.self_attn.dt_bias)",
          "adamw, lr 0.05 x 0.25, weight decay 0.1: 1 tensor (lm_head.weight)"));
}

}  // namespace
}  // namespace lamina::model
