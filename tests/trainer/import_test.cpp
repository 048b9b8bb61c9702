#include "trainer/export/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/trainer/export_support.h"
#include "trainer/export/safetensors.h"

namespace lamina {
namespace {

using namespace testing_export;

class BadImport : public testing::Test {
 protected:
  BadImport() {
    write_checkpoint(folder_.path() / "c", config_of({}), 1);
    export_checkpoint(folder_.path() / "c", from_, {.max_shard_bytes = 3000});
    whole_ = contents(from_);
  }
  void replace(const std::string& file, const std::string& what, const std::string& by) {
    std::string text = whole_.at(file);
    const size_t at = text.find(what);
    ASSERT_NE(at, std::string::npos) << what;
    io::write_file_atomically(from_ / file, text.replace(at, what.size(), by));
  }
  // What import says about it; the folder is whole again afterwards.
  std::string fault(const std::optional<Config>& experiment = {}) {
    const std::string found = message([&] { import_model(from_, folder_.path() / "back", experiment); });
    for (const auto& [name, content] : whole_) io::write_file_atomically(from_ / name, content);
    EXPECT_FALSE(fs::exists(folder_.path() / "back") || fs::exists(folder_.path() / "back.lamina-tmp")) << found;
    return found.starts_with(folder_.path().string()) ? found.substr(folder_.path().string().size() + 1) : found;
  }

  TemporaryFolder folder_;
  fs::path from_ = folder_.path() / "from";
  std::map<std::string, std::string> whole_;
  const std::string index_ = "model.safetensors.index.json";
};

TEST_F(BadImport, FilesThatAreNotWhatTheIndexSays) {
  const std::string shard = whole_.lower_bound("model-")->first;
  fs::remove(from_ / shard);
  EXPECT_EQ(fault(), "from/" + shard + ": can't open: No such file or directory");
  fs::remove(from_ / index_);
  EXPECT_THAT(fault(), testing::HasSubstr("not found, expected an exported model's index"));
  fs::remove(from_ / "config.json");
  EXPECT_THAT(fault(), testing::HasSubstr("config.json"));
  fs::resize_file(from_ / shard, fs::file_size(from_ / shard) - 1);
  EXPECT_THAT(fault(), testing::HasSubstr("bytes of data found, expected"));
  replace(index_, "\"lm_head.weight\"", "\"lm_head.heavy\"");
  EXPECT_THAT(fault(), testing::HasSubstr("tensor lm_head.heavy is not in model-"));
  replace(index_, "\"model.norm.weight\": \"model-", "\"model.norm.weight\": \"../model-");
  EXPECT_THAT(fault(), testing::HasSubstr("expected a safetensors file beside it"));
  replace(index_, "\"total_size\": ", "\"total_size\": 1");
  EXPECT_THAT(fault(), testing::HasSubstr("expected the"));
  replace(index_, "weight_map", "weight_mop");
  EXPECT_THAT(fault(), testing::HasSubstr("no weight_map in it"));
}

TEST_F(BadImport, TensorsThatAreNotTheModels) {
  const auto set_num_layers = [&](int num_layers) {
    auto json = nlohmann::ordered_json::parse(whole_.at("config.json"));
    json["num_hidden_layers"] = num_layers;
    json["linear_attn_config"] = nullptr;
    io::write_file_atomically(from_ / "config.json", json.dump());
  };
  set_num_layers(2);
  EXPECT_THAT(fault(), testing::HasSubstr("is not one of the model in config.json"));
  set_num_layers(4);
  EXPECT_THAT(fault(), testing::HasSubstr("tensor model.layers.3."));
  replace("config.json", "\"vocab_size\": 31", "\"vocab_size\": 32");
  EXPECT_THAT(fault(), testing::HasSubstr("tensor lm_head.weight: shape [31, 12] found, expected [32, 12]"));
}

TEST_F(BadImport, ConfigurationsThatAreNotThisArchitecture) {
  const std::string file = "config.json";
  replace(file, "\"lamina\"", "\"llama\"");
  EXPECT_EQ(fault(), "from/config.json: model_type: found \"llama\", expected \"kimi_linear\" or \"lamina\"");
  replace(file, "\"silu\"", "\"gelu\"");
  EXPECT_EQ(fault(), "from/config.json: hidden_act: found \"gelu\", expected \"silu\"");
  replace(file, "\"hidden_size\": 12", "\"hidden_size\": 12.5");
  EXPECT_EQ(fault(), "from/config.json: hidden_size: found 12.5, expected an integer");
  replace(file, "\"hidden_size\": 12,", "");
  EXPECT_EQ(fault(), "from/config.json: hidden_size: required key is missing");
  replace(file, "block_attnres", "blocky");
  EXPECT_THAT(fault(), testing::HasSubstr("residual: found \"blocky\""));
  replace(file, "\"mla_use_nope\": true", "\"rope_scaling\": {}");
  EXPECT_THAT(fault(), testing::HasSubstr("rope_scaling: found {}"));
  replace(file, "\"v_head_dim\": 5", "\"v_head_dim\": 0");
  EXPECT_THAT(fault(), testing::HasSubstr("v_head_dim"));
  io::write_file_atomically(from_ / file, std::string_view("{"));
  EXPECT_EQ(fault(), "from/config.json: is no JSON");
  EXPECT_THAT(fault(config_of({"model.rms_norm_eps=1e-6"})),
              testing::HasSubstr("from/config.json: model.rms_norm_eps: 1.0e-05 found, expected 1.0e-06"));
  replace(file, "\"bos_token_id\": null", "\"bos_token_id\": \"a\"");
  EXPECT_EQ(fault(), "from/config.json: bos_token_id: found \"a\", expected an integer");
  replace(file, "\"eos_token_id\": null", "\"eos_token_id\": [1, true]");
  EXPECT_EQ(fault(), "from/config.json: eos_token_id: found [1,true], expected an integer or a list of integers");
}

// ---- What transformers' save_pretrained makes of an export (5.24.0; tests/transformers_test.py runs the real one) ----

using Tensors = std::map<std::string, std::pair<Shape, std::vector<float>>>;

Tensors read_tensors(const fs::path& file) {
  Tensors tensors;
  const SafetensorsFile shard(file);
  for (const SafetensorsEntry& entry : shard.tensors()) {
    auto& [shape, values] = tensors[entry.name];
    shape = entry.shape;
    values.resize(static_cast<size_t>(shape.num_elements()));
    shard.read(entry.name, {reinterpret_cast<char*>(values.data()), values.size() * sizeof(float)});
  }
  return tensors;
}

void write_tensors(const fs::path& file, const Tensors& tensors) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) entries.push_back({name, DType::f32, tensor.first});
  SafetensorsWriter writer(file, entries);
  for (const SafetensorsEntry& entry : writer.tensors())
    writer.write(tensors.at(entry.name).second.data(), entry.num_bytes());
  writer.finish();
}

// Joins tensors one after the other, and removes them.
void join(Tensors& tensors, const std::string& name, const Shape& shape, const std::vector<std::string>& parts) {
  std::vector<float> values;
  for (const std::string& part : parts) {
    const std::vector<float>& more = tensors.at(part).second;
    values.insert(values.end(), more.begin(), more.end());
    tensors.erase(part);
  }
  tensors[name] = {shape, values};
}

void rename(Tensors& tensors, const std::string& from, const std::string& to) {
  Tensors renamed;
  for (auto& [name, tensor] : tensors) {
    std::string other = name;
    if (const size_t at = name.find(from); at != std::string::npos) other.replace(at, from.size(), to);
    renamed[other] = std::move(tensor);
  }
  tensors = std::move(renamed);
}

TEST(Import, WhatTransformersSaves) {
  const TemporaryFolder folder;
  const Config config = config_of(with(kimi, {"model.gate_lower_bound=null"}));
  write_checkpoint(folder.path() / "c", config, 1);
  const ExportSummary exported = export_checkpoint(folder.path() / "c", folder.path() / "a", {.dtype = DType::f32});
  const Tensors ours = read_tensors(folder.path() / "a/model-00001-of-00001.safetensors");
  const auto import = [&](const std::string& name, const Tensors& tensors) {
    const fs::path from = folder.path() / name;
    fs::create_directory(from);
    fs::copy_file(folder.path() / "a/config.json", from / "config.json", fs::copy_options::overwrite_existing);
    write_tensors(from / "model.safetensors", tensors);
    const ExportSummary summary = import_model(from, folder.path() / (name + "-back"), config);
    EXPECT_EQ(summary.hash, exported.hash) << name;
    EXPECT_EQ(summary.num_tensors, exported.num_tensors) << name;
  };
  // As the released names but for the dense MLP.
  Tensors original = ours;
  rename(original, "layers.0.mlp.", "layers.0.block_sparse_moe.");
  import("original", original);
  // And as its modules have them: layers 0 and 1 are KDA, 1 and 2 have 5 experts of width 7.
  Tensors fused = ours;
  for (const std::string layer : {"model.layers.1.", "model.layers.2."}) {
    std::vector<std::string> gates_and_ups, downs;
    for (int expert = 0; expert < 5; ++expert) {
      const std::string at = fmt::format("{}block_sparse_moe.experts.{}.", layer, expert);
      gates_and_ups.insert(gates_and_ups.end(), {at + "w1.weight", at + "w3.weight"});
      downs.push_back(at + "w2.weight");
    }
    join(fused, layer + "mlp.experts.gate_up_proj", {5, 14, 12}, gates_and_ups);
    join(fused, layer + "mlp.experts.down_proj", {5, 12, 7}, downs);
  }
  for (const std::string layer : {"model.layers.0.self_attn.", "model.layers.1.self_attn."}) {
    join(fused, layer + "conv1d.weight", {96, 1, 4},
         {layer + "q_conv1d.weight", layer + "k_conv1d.weight", layer + "v_conv1d.weight"});
    for (const char* part : {"f_a_proj.", "f_b_proj.", "dt_bias", "A_log"})
      rename(fused, layer + part, layer + "forget_gate." + part);
  }
  rename(fused, ".block_sparse_moe.", ".mlp.");
  fused["model.layers.2.mlp.nothing.weight"] = {{0, 12}, {}};  // shared experts of a model without
  import("fused", fused);
  // Not both, and nothing else.
  Tensors both = fused;
  both["model.layers.1.block_sparse_moe.experts.0.w1.weight"] =
      ours.at("model.layers.1.block_sparse_moe.experts.0.w1.weight");
  EXPECT_THAT(message([&] { import("both", both); }), testing::HasSubstr("experts.0.w1.weight is there twice, as"));
  Tensors wrong = fused;
  wrong["model.layers.1.mlp.experts.down_proj"].first = {5, 7, 12};
  EXPECT_THAT(message([&] { import("wrong", wrong); }),
              testing::HasSubstr("mlp.experts.down_proj: shape [5, 7, 12] found, expected [5, 12, 7]"));
}

}  // namespace
}  // namespace lamina
