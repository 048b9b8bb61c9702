#include "trainer/export/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/trainer/export_support.h"
#include "trainer/record/run_folder.h"

namespace lamina {
namespace {

using namespace testing_export;

TEST(HfConfig, KeysOfTheReleasedModel) {
  const Config config = config_of(kimi);
  const std::string text = to_hf_config({config.model, 16, DType::bf16, {}, false, {}});
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json.at("linear_attn_config").at("kda_layers"), nlohmann::json::array({1, 2}));  // counted from 1
  EXPECT_EQ(json.at("linear_attn_config").at("full_attn_layers"), nlohmann::json::array({3}));
  EXPECT_EQ(json.at("linear_attn_config").at("gate_lower_bound"), -5.0);
  EXPECT_EQ(json.at("mla_use_nope"), true);
  EXPECT_EQ(json.at("moe_router_activation_func"), "sigmoid");
  EXPECT_EQ(json.at("dtype"), "bfloat16");
  EXPECT_TRUE(json.at("q_lora_rank").is_null());
  const HfModel back = parse_hf_config(text, "config.json");
  EXPECT_EQ(to_hf_config(back), text);
  EXPECT_EQ(back.model.mixer(2), Mixer::mla);
  EXPECT_EQ(back.model.num_experts, 5);
  const auto fault = [&](const std::string& what, const std::string& by) {
    std::string changed = text;
    changed.replace(changed.find(what), what.size(), by);
    return message([&] { parse_hf_config(changed, "c"); });
  };
  EXPECT_THAT(fault("    3\n", "    2\n"), testing::HasSubstr("each layer once"));
  EXPECT_THAT(fault("    3\n", "    4\n"), testing::HasSubstr("found 4, expected a layer from 1 to 3"));
  EXPECT_THAT(fault("    1,\n", ""), testing::HasSubstr("1 is in none"));
  EXPECT_THAT(fault("\"sigmoid\"", "\"softmax\""), testing::HasSubstr("moe_router_activation_func: found \"softmax\""));
}

// transformers' kimi_linear computes these; whatever it would compute otherwise has a name that it refuses.
TEST(HfConfig, IsKimiLinearOnlyWhereThatComputesTheModel) {
  const std::vector<std::string> same = with(kimi, {"model.gate_lower_bound=null"});
  const std::vector<std::vector<std::string>> right = {plain, same, with(plain, {"model.tie_word_embeddings=true"}),
                                                       with(same, {"model.rms_norm_eps=1e-3"}),
                                                       with(plain, {"model.q_lora_rank=5", "model.rms_norm_eps=1e-6"})};
  for (const auto& overrides : right) {
    const auto json = hf_json(overrides);
    EXPECT_EQ(json.at("architectures"), nlohmann::json::array({"KimiLinearForCausalLM"}));
    EXPECT_EQ(json.at("model_type"), "kimi_linear");
    EXPECT_TRUE(reasons_against_kimi_linear(hf_model(overrides)).empty());
  }
  const std::vector<std::pair<std::vector<std::string>, std::string>> other = {
      {{"model.q_lora_rank=null"}, "residual: block_attnres: kimi_linear has no Attention Residuals"},
      {with(plain, {"model.residual=full_attnres"}), "residual: full_attnres: kimi_linear has no Attention Residuals"},
      {with(plain, {"model.residual=mhc"}), "residual: mhc: kimi_linear has no hyper-connections"},
      {kimi, "gate_lower_bound: -5: kimi_linear has the softplus gate only"},
      {with(plain, {"model.kv_a_layernorm_eps=1e-5"}), "kv_a_layernorm_eps: 1e-05: kimi_linear's is always 1e-06"},
      {with(plain, {"model.q_lora_rank=5"}),
       "rms_norm_eps: 1e-05: with q_lora_rank, kimi_linear's norm of the queries' latent has always 1e-06"},
      {with(same, {"model.num_experts=1", "model.num_experts_per_token=1"}),
       "num_experts: 1: kimi_linear's router needs two"}};
  for (const auto& [overrides, reason] : other) {
    const auto json = hf_json(overrides);
    EXPECT_EQ(json.at("architectures"), nlohmann::json::array({"LaminaForCausalLM"})) << reason;
    EXPECT_EQ(json.at("model_type"), "lamina") << reason;
    EXPECT_THAT(reasons_against_kimi_linear(hf_model(overrides)), testing::ElementsAre(reason));
  }
}

// A key of `model` that is added is also a key of config.json, which import reads, kimi_linear knows or has a reason against, and
// modeling_lamina.py computes. Then it may stand here.
TEST(HfConfig, HasEveryKeyOfTheModel) {
  const std::vector<std::string> all =
      with(kimi, {"model.residual=block_attnres", "model.attn_res_block_size=2", "model.q_lora_rank=5"});
  std::set<std::string> keys;
  for (const auto& [key, value] : flatten_config(to_yaml(config_of(all))))
    if (key.starts_with("model.")) keys.insert(key.substr(6, key.find('.', 6) - 6));
  EXPECT_THAT(keys, testing::UnorderedElementsAre(
                        "vocab_size", "hidden_size", "num_hidden_layers", "rms_norm_eps", "tie_word_embeddings",
                        "initializer_range", "residual", "attn_res_block_size", "mixers", "num_attention_heads",
                        "q_lora_rank", "kv_lora_rank", "kv_a_layernorm_eps", "qk_nope_head_dim", "qk_rope_head_dim",
                        "v_head_dim", "linear_num_heads", "linear_head_dim", "short_conv_kernel_size",
                        "gate_lower_bound", "intermediate_size", "num_experts", "first_k_dense_replace",
                        "num_experts_per_token", "num_shared_experts", "moe_intermediate_size", "routed_scaling_factor",
                        "moe_renormalize", "aux_loss_alpha"));
  const std::vector<std::string> changes = {"vocab_size=32",
                                            "hidden_size=16",
                                            "num_hidden_layers=4",
                                            "rms_norm_eps=1e-4",
                                            "tie_word_embeddings=true",
                                            "attn_res_block_size=1",
                                            "mixers=[mla, kda]",
                                            "num_attention_heads=1",
                                            "q_lora_rank=null",
                                            "kv_lora_rank=7",
                                            "kv_a_layernorm_eps=1e-5",
                                            "qk_nope_head_dim=5",
                                            "qk_rope_head_dim=0",
                                            "v_head_dim=4",
                                            "linear_num_heads=4",
                                            "linear_head_dim=32",
                                            "short_conv_kernel_size=3",
                                            "gate_lower_bound=null",
                                            "intermediate_size=24",
                                            "num_experts=8",
                                            "first_k_dense_replace=2",
                                            "num_experts_per_token=1",
                                            "num_shared_experts=2",
                                            "moe_intermediate_size=8",
                                            "routed_scaling_factor=2",
                                            "moe_renormalize=false",
                                            "initializer_range=0.5",
                                            "aux_loss_alpha=0.5"};
  for (const std::string& change : changes) {
    const ModelConfig model = config_of(with(all, {"model." + change})).model;
    const std::string text = to_hf_config({model, 16, DType::f32, {}, false, {}});
    const HfModel back = parse_hf_config(text, "c");
    EXPECT_EQ(message([&] { check_same_model("c", back.model, model); }), "no error") << change;
    EXPECT_EQ(to_hf_config(back), text) << change;
    EXPECT_NE(text, to_hf_config({config_of(all).model, 16, DType::f32, {}, false, {}})) << change;
  }
}

TEST(HfConfig, HyperConnectionsThereAndBack) {
  const Config config =
      config_of({"model.residual=mhc", "model.attn_res_block_size=null", "model.num_residual_streams=3"});
  const std::string text = to_hf_config({config.model, 16, DType::f32, {}, false, {}});
  EXPECT_EQ(nlohmann::json::parse(text).at("num_residual_streams"), 3);
  EXPECT_EQ(message([&] { check_same_model("c", parse_hf_config(text, "c").model, config.model); }), "no error");
  std::string many = text;
  many.replace(many.find("streams\": 3"), 11, "streams\": 5");
  EXPECT_THAT(message([&] { parse_hf_config(many, "c"); }),
              testing::HasSubstr("num_residual_streams: found 5, expected 2 to 4"));
  const TemporaryFolder folder;
  write_checkpoint(folder.path() / "c", config, 2);
  export_checkpoint(folder.path() / "c", folder.path() / "a", {.dtype = DType::f32});
  import_model(folder.path() / "a", folder.path() / "back", {});
  export_checkpoint(folder.path() / "back", folder.path() / "b", {.dtype = DType::f32});
  EXPECT_EQ(contents(folder.path() / "a"), contents(folder.path() / "b"));
}

// transformers finds the code by the configuration; only in folders that have it.
TEST(HfConfig, SaysWhereTheCodeIs) {
  EXPECT_EQ(hf_json(kimi).at("auto_map"),
            nlohmann::json({{"AutoConfig", "modeling_lamina.LaminaConfig"},
                            {"AutoModel", "modeling_lamina.LaminaModel"},
                            {"AutoModelForCausalLM", "modeling_lamina.LaminaForCausalLM"}}));
  EXPECT_FALSE(hf_json(plain).contains("auto_map"));
}

TEST(HfConfig, DocumentsApart) {
  const TokenizerIdentity tokenizer{"", {7, std::nullopt, {7}}};
  const HfModel apart{config_of(plain).model, 16, DType::f32, tokenizer, false, 7};
  EXPECT_THAT(reasons_against_kimi_linear(apart),
              testing::ElementsAre("document_mask: true: kimi_linear reads over the ends of documents"));
  auto json = nlohmann::json::parse(to_hf_config(apart));
  EXPECT_EQ(json.at("model_type"), "lamina");
  EXPECT_EQ(json.at("document_end_token_id"), 7);
  EXPECT_EQ(parse_hf_config(json.dump(), "c").document_end, 7);
  json["document_end_token_id"] = 31;
  EXPECT_EQ(message([&] { parse_hf_config(json.dump(), "c"); }),
            "c: document_end_token_id: found 31, expected a token from 0 to 30");
  json["document_end_token_id"] = 8;
  EXPECT_EQ(message([&] { parse_hf_config(json.dump(), "c"); }),
            "c: document_end_token_id: found 8, expected eos_token_id, 7");
  json["eos_token_id"] = nullptr;
  EXPECT_EQ(parse_hf_config(json.dump(), "c").tokenizer.ids.eos, std::vector<int64_t>{8});
}

// What kimi_linear's configuration can't read as null.
TEST(HfConfig, MlaAloneAndDenseAlone) {
  const auto json = hf_json(plain);
  EXPECT_EQ(json.at("linear_attn_config"),
            nlohmann::json({{"kda_layers", nlohmann::json::array()}, {"full_attn_layers", {1, 2, 3}}}));
  EXPECT_EQ(json.at("num_experts"), 0);
  EXPECT_EQ(json.at("first_k_dense_replace"), 3) << "by which kimi_linear tells dense layers";
  // Older exports.
  const HfModel back = parse_hf_config(json.dump(), "c");
  auto older = json;
  older["linear_attn_config"] = older["num_experts"] = nullptr;
  older.erase("first_k_dense_replace");
  EXPECT_EQ(to_hf_config(parse_hf_config(older.dump(), "c")), to_hf_config(back));
}

TEST(HfConfig, IdsOfSpecialTokens) {
  auto json = hf_json(plain);
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"})
    EXPECT_TRUE(json.contains(key) && json.at(key).is_null()) << "unknown, but not the released model's";
  EXPECT_FALSE(json.contains("tokenizer_hash"));
  json = hf_json(plain, {"0123456789abcdef", {7, 0, {7}}});
  EXPECT_EQ(json.at("bos_token_id"), 7);
  EXPECT_EQ(json.at("eos_token_id"), 7);
  EXPECT_EQ(json.at("pad_token_id"), 0);
  EXPECT_EQ(json.at("tokenizer_hash"), "0123456789abcdef");
  json = hf_json(plain, {"", {std::nullopt, std::nullopt, {7, 8}}});
  EXPECT_EQ(json.at("eos_token_id"), nlohmann::json::array({7, 8}));
  EXPECT_EQ(parse_hf_config(json.dump(), "c").tokenizer.ids, (TokenIds{std::nullopt, std::nullopt, {7, 8}}));
  json["pad_token_id"] = 31;  // of a vocabulary of 31
  json["bos_token_id"] = -1;
  json["eos_token_id"] = {30, 31};
  EXPECT_EQ(parse_hf_config(json.dump(), "c").tokenizer.ids, (TokenIds{std::nullopt, std::nullopt, {30}}));
}

}  // namespace
}  // namespace lamina
