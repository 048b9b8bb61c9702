#include "trainer/record/identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/schema/decode.h"

namespace lamina {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

const std::string experiment =
    "model: {vocab_size: 31, hidden_size: 12, num_hidden_layers: 4, residual: block_attnres, attn_res_block_size: 2,\n"
    "        num_attention_heads: 2, q_lora_rank: 5, kv_lora_rank: 6, qk_nope_head_dim: 4, qk_rope_head_dim: 3,\n"
    "        v_head_dim: 5, intermediate_size: 20, mixers: [kda, mla], linear_num_heads: 2, linear_head_dim: 16,\n"
    "        num_experts: 4, num_experts_per_token: 2, moe_intermediate_size: 7}\n"
    "data: {seq_len: 16, train: [{path: data/none}]}\n"
    "train: {num_steps: 10, global_batch_size: 2, micro_batch_size: 1, optimizer: {lr: 1e-3}}\n";

ModelConfig model_of(const std::vector<std::string>& overrides = {}) {
  return parse_config(experiment, "a.yaml", overrides).model;
}

template <class F>
std::string message(F&& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(SameModel, EveryKeyThatChangesWhatIsComputed) {
  const std::vector<std::vector<std::string>> changes = {
      {"model.num_hidden_layers=2"},  // whose parameters are a part of the other's
      {"model.residual=standard", "model.attn_res_block_size=null"},
      {"model.residual=full_attnres", "model.attn_res_block_size=null"},
      {"model.mixers=[mla, kda]"},
      {"model.num_experts=8"},
      {"model.attn_res_block_size=1"},
      {"model.vocab_size=32"},
      {"model.hidden_size=16"},
      {"model.rms_norm_eps=1e-6"},
      {"model.kv_a_layernorm_eps=1e-5"},
      {"model.tie_word_embeddings=true"},
      {"model.num_attention_heads=1"},
      {"model.q_lora_rank=null"},
      {"model.kv_lora_rank=7"},
      {"model.qk_nope_head_dim=5"},
      {"model.qk_rope_head_dim=2"},
      {"model.v_head_dim=4"},
      {"model.linear_num_heads=4"},
      {"model.linear_head_dim=32"},
      {"model.short_conv_kernel_size=3"},
      {"model.gate_lower_bound=-5"},
      {"model.intermediate_size=24"},
      {"model.first_k_dense_replace=2"},
      {"model.num_experts_per_token=1"},
      {"model.num_shared_experts=2"},
      {"model.moe_intermediate_size=8"},
      {"model.routed_scaling_factor=2"},
      {"model.moe_renormalize=false"}};
  for (const std::vector<std::string>& change : changes) {
    const std::string key = change.front().substr(0, change.front().find('='));
    EXPECT_THAT(message([&] { check_same_model("c", model_of(change), model_of()); }),
                AllOf(StartsWith("c: " + key + ": "), HasSubstr(" found, expected "), HasSubstr("configuration")));
    EXPECT_THAT(message([&] { check_same_model("c", model_of(), model_of(change)); }), StartsWith("c: " + key + ": "));
  }
  EXPECT_EQ(message([&] { check_same_model("c", model_of({"model.rms_norm_eps=1e-6"}), model_of()); }),
            "c: model.rms_norm_eps: 1.0e-06 found, expected 1.0e-05 as in the configuration");
  EXPECT_EQ(message([&] { check_same_model("c", model_of({"model.gate_lower_bound=-5"}), model_of()); }),
            "c: model.gate_lower_bound: -5 found, expected (absent) as in the configuration");
}

TEST(SameModel, WhatDoesNotChangeIt) {
  for (const std::vector<std::string>& change : {std::vector<std::string>{},
                                                 {"model.mixers=[kda, mla, kda, mla]"},
                                                 {"model.initializer_range=0.5"},
                                                 {"model.aux_loss_alpha=1e-3"},
                                                 {"parallel.expert=2"}})
    EXPECT_EQ(message([&] { check_same_model("c", model_of(change), model_of()); }), "no error");
  EXPECT_EQ(message([&] { check_same_model("c", model_of(), model_of({"model.vocab_size=0"})); }), "no error")
      << "the tokenizer's";
}

TEST(ModelToStartFrom, MayGainAttentionResiduals) {
  const ModelConfig standard = model_of({"model.residual=standard", "model.attn_res_block_size=null"});
  for (const auto& [change, each] : {std::pair<std::vector<std::string>, size_t>{{}, 4},
                                     {{"model.residual=full_attnres", "model.attn_res_block_size=null"}, 4}}) {
    const ModelConfig asked = model_of(change);
    const auto added = check_model_to_start_from("c", standard, asked);
    EXPECT_EQ(added.size(), each * static_cast<size_t>(asked.num_hidden_layers) + 2);
    for (const model::ParameterSpec& spec : added) {
      EXPECT_THAT(spec.name, testing::HasSubstr("_res_"));
      EXPECT_EQ(spec.init, spec.name.ends_with("_proj.weight") ? model::Init::zeros : model::Init::ones) << spec.name;
    }
    EXPECT_EQ(message([&] { check_model_to_start_from("c", asked, standard); }).substr(0, 19), "c: model.residual: ");
  }
  const ModelConfig streams = model_of({"model.residual=mhc", "model.attn_res_block_size=null"});
  EXPECT_TRUE(check_model_to_start_from("c", streams, streams).empty());
  EXPECT_EQ(message([&] { check_model_to_start_from("c", standard, streams); }),
            "c: model.residual: standard found, expected mhc as in the configuration");
  EXPECT_EQ(message([&] { check_model_to_start_from("c", streams, model_of()); }),
            "c: model.residual: mhc found, expected block_attnres as in the configuration");
  EXPECT_TRUE(check_model_to_start_from("c", standard, standard).empty());
  EXPECT_TRUE(check_model_to_start_from("c", model_of(), model_of()).empty());
  EXPECT_THAT(message([&] { check_model_to_start_from("c", standard, model_of({"model.rms_norm_eps=1e-6"})); }),
              StartsWith("c: model.rms_norm_eps: "));
  EXPECT_THAT(message([&] { check_model_to_start_from("c", model_of(), model_of({"model.attn_res_block_size=1"})); }),
              StartsWith("c: model.attn_res_block_size: "));
}

TEST(StoredTokenizer, HashAndIds) {
  CheckpointInfo info;
  EXPECT_EQ(stored_tokenizer(info).hash, "");
  const auto bytes = make_tokenizer("bytes");
  store_tokenizer(info, identity_of(*bytes));
  EXPECT_EQ(stored_tokenizer(info).hash, bytes->hash());
  EXPECT_EQ(stored_tokenizer(info).ids, (TokenIds{256, std::nullopt, {256}}));
  CheckpointInfo older;
  older.sampler_fingerprint = "seq_len 16; tokenizer 0123456789abcdef; train 900 tokens 00000000000000aa";
  EXPECT_EQ(stored_tokenizer(older).hash, "0123456789abcdef");
  EXPECT_TRUE(stored_tokenizer(older).ids.eos.empty());
}

TEST(StoredTokenizer, IsTheTokenizerItself) {
  CheckpointInfo info;
  EXPECT_EQ(make_tokenizer(info, "c"), nullptr);
  EXPECT_EQ(find_tokenizer(info, "c"), nullptr) << "unknown";
  const auto bytes = make_tokenizer("bytes");
  store_tokenizer(info, *bytes);
  EXPECT_EQ(stored_tokenizer(info).ids, identity_of(*bytes).ids);
  EXPECT_EQ(make_tokenizer(info, "c")->hash(), bytes->hash());
  EXPECT_EQ(find_tokenizer(info, "c")->hash(), bytes->hash());
  info.tokenizer->name = "words";
  EXPECT_EQ(message([&] { make_tokenizer(info, "c"); }),
            "c: unknown tokenizer \"words\", expected bytes, sentencepiece, huggingface or tiktoken");
}

TEST(StoredTokenizer, AnotherIsRefused) {
  CheckpointInfo info;
  info.extra["tokenizer_hash"] = "0123456789abcdef";
  EXPECT_EQ(message([&] { check_tokenizer(info, "runs/a", "0123456789abcdef", "data/a"); }), "no error");
  EXPECT_EQ(message([&] { check_tokenizer(info, "runs/a", "00000000000000aa", "data/a"); }),
            "data/a: tokenizer 00000000000000aa found, expected 0123456789abcdef, with which runs/a was trained");
  EXPECT_EQ(message([&] { check_tokenizer({}, "imported", "00000000000000aa", "data/a"); }), "no error") << "unknown";
}

TEST(Parameters, NoMoreAndNoLess) {
  const std::vector<model::ParameterSpec> specs = model::parameter_specs(model_of());
  std::vector<CheckpointTensor> stored = {{"optimizer/m/other", DType::f32, {1}}};
  for (const model::ParameterSpec& spec : specs) stored.push_back({"parameters/" + spec.name, DType::f32, spec.shape});
  EXPECT_EQ(message([&] { check_parameters("c", stored, specs); }), "no error");
  stored.push_back({"parameters/model.layers.4.mlp.up_proj.weight", DType::f32, {1}});
  EXPECT_EQ(message([&] { check_parameters("c", stored, specs); }),
            "c: tensor parameters/model.layers.4.mlp.up_proj.weight is not one of the model in its configuration");
  stored.pop_back();
  stored.pop_back();
  EXPECT_EQ(message([&] { check_parameters("c", stored, specs); }),
            "c: tensor parameters/" + specs.back().name + " not found, expected every one of the model");
}

}  // namespace
}  // namespace lamina
