// Small models, checkpoints of them, and what an exported folder holds.
#pragma once

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/io/file.h"
#include "model/parameters.h"
#include "tests/trainer/checkpoint_support.h"
#include "trainer/export/export.h"
#include "trainer/export/hf_config.h"
#include "trainer/record/identity.h"

namespace lamina::testing_export {

namespace fs = std::filesystem;
using testing_checkpoint::TemporaryFolder;
using Values = std::map<std::string, std::vector<float>>;

inline const std::string dense =
    "model: {vocab_size: 31, hidden_size: 12, num_hidden_layers: 3, residual: block_attnres, attn_res_block_size: 2,\n"
    "        num_attention_heads: 2, q_lora_rank: 5, kv_lora_rank: 6, qk_nope_head_dim: 4, qk_rope_head_dim: 3,\n"
    "        v_head_dim: 5, intermediate_size: 20}\n"
    "data: {seq_len: 16, train: [{path: data/none}]}\n"
    "train: {num_steps: 10, global_batch_size: 2, micro_batch_size: 1, optimizer: {lr: 1e-3}}\n";

inline const std::vector<std::string> kimi = {
    "model.mixers=[kda, kda, mla]",  "model.linear_num_heads=2",      "model.linear_head_dim=16",
    "model.gate_lower_bound=-5",     "model.num_experts=5",           "model.first_k_dense_replace=1",
    "model.num_experts_per_token=2", "model.moe_intermediate_size=7", "model.aux_loss_alpha=1e-4",
    "model.q_lora_rank=null",        "model.residual=standard",       "model.attn_res_block_size=null"};

inline Config config_of(const std::vector<std::string>& overrides) {
  return parse_config(dense, "a.yaml", overrides);
}

// A checkpoint of random parameters, each in `num_pieces` pieces, with something that export must pass over.
inline Values write_checkpoint(const fs::path& path, const Config& config, int64_t num_pieces,
                               const std::optional<TokenizerIdentity>& tokenizer = {},
                               const Tokenizer* itself = nullptr) {
  CheckpointInfo info;
  info.config_yaml = to_yaml(config);
  if (tokenizer) store_tokenizer(info, *tokenizer);
  if (itself) store_tokenizer(info, *itself);
  CheckpointWriter writer(path, info);
  Values all;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const model::ParameterSpec& spec : model::parameter_specs(config.model)) {
    std::vector<float>& values = all[spec.name];
    const int64_t count = spec.shape.num_elements();
    for (int64_t i = 0; i < count; ++i) values.push_back(normal(random));
    for (int64_t piece = 0; piece < num_pieces; ++piece) {
      const int64_t begin = count * piece / num_pieces, end = count * (piece + 1) / num_pieces;
      if (begin < end)
        writer.write({"parameters/" + spec.name, spec.shape, begin, end,
                      TensorView(values.data() + begin, DType::f32, {end - begin})});
    }
    writer.write({"optimizer/m/" + spec.name, spec.shape, 0, count, TensorView(values.data(), DType::f32, {count})});
  }
  writer.commit();
  return all;
}

// But for README.md, in which an imported model says where it comes from.
inline std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename() != "README.md") files[entry.path().filename().string()] = io::read_file(entry.path());
  return files;
}

inline std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
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

inline HfModel hf_model(const std::vector<std::string>& overrides, const TokenizerIdentity& tokenizer = {}) {
  return {config_of(overrides).model, 16, DType::f32, tokenizer, false, std::nullopt};
}

inline nlohmann::json hf_json(const std::vector<std::string>& overrides, const TokenizerIdentity& tokenizer = {}) {
  return nlohmann::json::parse(to_hf_config(hf_model(overrides, tokenizer)));
}

inline std::vector<std::string> with(std::vector<std::string> list, const std::vector<std::string>& more) {
  list.insert(list.end(), more.begin(), more.end());
  return list;
}

inline const std::vector<std::string> plain = {"model.residual=standard", "model.attn_res_block_size=null",
                                               "model.q_lora_rank=null"};

}  // namespace lamina::testing_export
