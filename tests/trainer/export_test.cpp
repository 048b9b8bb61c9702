#include "trainer/export/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "configs/schema/decode.h"
#include "core/io/file.h"
#include "model/parameters.h"
#include "tests/trainer/checkpoint_support.h"
#include "trainer/export/export_values.h"
#include "trainer/export/hf_config.h"
#include "trainer/export/model_card.h"
#include "trainer/record/identity.h"
#include "trainer/record/run_folder.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using testing_checkpoint::TemporaryFolder;
using Values = std::map<std::string, std::vector<float>>;

const std::string dense =
    "model: {vocab_size: 31, hidden_size: 12, num_hidden_layers: 3, residual: block_attnres, attn_res_block_size: 2,\n"
    "        num_attention_heads: 2, q_lora_rank: 5, kv_lora_rank: 6, qk_nope_head_dim: 4, qk_rope_head_dim: 3,\n"
    "        v_head_dim: 5, intermediate_size: 20}\n"
    "data: {seq_len: 16, train: [{path: data/none}]}\n"
    "train: {num_steps: 10, global_batch_size: 2, micro_batch_size: 1, optimizer: {lr: 1e-3}}\n";

const std::vector<std::string> kimi = {
    "model.mixers=[kda, kda, mla]",  "model.linear_num_heads=2",      "model.linear_head_dim=16",
    "model.gate_lower_bound=-5",     "model.num_experts=5",           "model.first_k_dense_replace=1",
    "model.num_experts_per_token=2", "model.moe_intermediate_size=7", "model.aux_loss_alpha=1e-4",
    "model.q_lora_rank=null",        "model.residual=standard",       "model.attn_res_block_size=null"};

Config config_of(const std::vector<std::string>& overrides) {
  return parse_config(dense, "a.yaml", overrides);
}

// A checkpoint of random parameters, each in `num_pieces` pieces, with something that export must pass over.
Values write_checkpoint(const fs::path& path, const Config& config, int64_t num_pieces,
                        const std::optional<TokenizerIdentity>& tokenizer = {}, const Tokenizer* itself = nullptr) {
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
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename() != "README.md") files[entry.path().filename().string()] = io::read_file(entry.path());
  return files;
}

std::vector<std::string> names_in(const fs::path& folder) {
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

class Models : public testing::TestWithParam<bool> {
 protected:
  Config config() const { return config_of(GetParam() ? kimi : std::vector<std::string>{}); }
};
INSTANTIATE_TEST_SUITE_P(Export, Models, testing::Bool(),
                         [](const auto& which) { return which.param ? "Kimi" : "Dense"; });

TEST_P(Models, Fp32ThereAndBackIsTheSameBytes) {
  const TemporaryFolder folder;
  const Values values = write_checkpoint(folder.path() / "whole", config(), 1);
  write_checkpoint(folder.path() / "cut", config(), 3);
  const ExportOptions fp32{.dtype = DType::f32, .max_shard_bytes = 6000};
  const ExportSummary first = export_checkpoint(folder.path() / "whole", folder.path() / "a", fp32);
  EXPECT_GT(first.num_shards, 1);
  EXPECT_EQ(first.num_parameters, model::num_parameters(config().model));
  EXPECT_EQ(first.num_tensors, static_cast<int64_t>(values.size()));
  EXPECT_EQ(first.num_bytes, 4 * first.num_parameters);
  for (const auto& [name, content] : contents(folder.path() / "a")) {
    if (!name.ends_with(".safetensors")) continue;
    const SafetensorsFile file(folder.path() / "a" / name);
    for (const SafetensorsEntry& entry : file.tensors()) {
      std::vector<float> read(values.at(entry.name).size());
      file.read(entry.name, {reinterpret_cast<char*>(read.data()), read.size() * sizeof(float)});
      EXPECT_EQ(read, values.at(entry.name)) << entry.name;
    }
  }
  // Another cut of the checkpoint; import, with and without the experiment; other sizes of shards.
  EXPECT_EQ(export_checkpoint(folder.path() / "cut", folder.path() / "b", fp32).hash, first.hash);
  EXPECT_EQ(contents(folder.path() / "a"), contents(folder.path() / "b"));
  EXPECT_EQ(import_model(folder.path() / "a", folder.path() / "back", config()).hash, first.hash);
  EXPECT_EQ(import_model(folder.path() / "a", folder.path() / "plain", {}).hash, first.hash);
  EXPECT_TRUE(verify_checkpoint(folder.path() / "back").empty());
  EXPECT_EQ(read_checkpoint_info(folder.path() / "back").extra.at("contents"), parameters_only);
  EXPECT_EQ(list_checkpoint_tensors(folder.path() / "back").size(), values.size());
  for (const char* imported : {"back", "plain"}) {
    const fs::path again = folder.path() / fmt::format("{}-again", imported);
    EXPECT_EQ(export_checkpoint(folder.path() / imported, again, fp32).hash, first.hash);
    EXPECT_EQ(contents(folder.path() / "a"), contents(again));
  }
  const ExportSummary one = export_checkpoint(folder.path() / "cut", folder.path() / "one", {.dtype = DType::f32});
  EXPECT_EQ(one.num_shards, 1);
  EXPECT_EQ(one.hash, first.hash);
  EXPECT_THAT(
      names_in(folder.path() / "one"),
      testing::ElementsAre("README.md", "config.json", "generation_config.json", "model-00001-of-00001.safetensors",
                           "model.safetensors.index.json", "modeling_lamina.py"));
}

TEST_P(Models, Bf16IsRoundedOnceAndThenStays) {
  const TemporaryFolder folder;
  const Values values = write_checkpoint(folder.path() / "checkpoint", config(), 2);
  const ExportSummary first = export_checkpoint(folder.path() / "checkpoint", folder.path() / "a", {});
  const SafetensorsFile file(folder.path() / "a/model-00001-of-00001.safetensors");
  int64_t bytes = 0;
  for (const auto& [name, expected] : values) {
    const bool is_decay = name.ends_with("A_log") || name.ends_with("dt_bias");
    EXPECT_EQ(file.entry(name).dtype, is_decay ? DType::f32 : DType::bf16) << name;
    std::vector<char> read(static_cast<size_t>(file.entry(name).num_bytes()));
    file.read(name, read);
    bytes += file.entry(name).num_bytes();
    convert_values(read, file.entry(name).dtype, DType::f32);
    for (size_t i = 0; i < expected.size(); ++i) {
      float found = 0;
      std::memcpy(&found, read.data() + i * sizeof(float), sizeof(float));
      ASSERT_EQ(found, is_decay ? expected[i] : static_cast<float>(bf16(expected[i]))) << name;
    }
  }
  EXPECT_EQ(first.num_bytes, bytes);
  const auto index = nlohmann::json::parse(io::read_file(folder.path() / "a/model.safetensors.index.json"));
  EXPECT_EQ(index.at("metadata").at("total_size"), bytes);
  EXPECT_EQ(index.at("metadata").at("total_parameters"), model::num_parameters(config().model));
  EXPECT_EQ(index.at("weight_map").size(), values.size());
  import_model(folder.path() / "a", folder.path() / "back", config());
  EXPECT_EQ(export_checkpoint(folder.path() / "back", folder.path() / "b", {}).hash, first.hash);
  EXPECT_EQ(contents(folder.path() / "a"), contents(folder.path() / "b"));
}

// The numbers of the released checkpoint's index.
TEST(Export, TheReleased48BHasItsShards) {
  Config config = config_of(kimi);
  ModelConfig& c = config.model;
  c.vocab_size = 163840;
  c.hidden_size = 2304;
  c.num_hidden_layers = 27;
  c.mixers.clear();
  for (int layer = 0; layer < 27; ++layer) c.mixers.push_back(layer % 4 == 3 || layer == 26 ? Mixer::mla : Mixer::kda);
  c.num_attention_heads = c.linear_num_heads = 32;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = c.v_head_dim = c.linear_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.intermediate_size = 9216;
  c.num_experts = 256;
  c.num_experts_per_token = 8;
  c.moe_intermediate_size = 1024;
  const std::vector<ExportShard> shards = make_export_shards(c, {});
  EXPECT_EQ(shards.size(), 20u);
  EXPECT_EQ(shards.back().name, "model-00020-of-00020.safetensors");
  int64_t tensors = 0, bytes = 0, parameters = 0;
  for (const ExportShard& shard : shards) {
    int64_t in_shard = 0;
    for (const SafetensorsEntry& entry : shard.tensors) {
      in_shard += entry.num_bytes();
      parameters += entry.shape.num_elements();
      ++tensors;
    }
    EXPECT_LE(in_shard, 5'000'000'000);
    bytes += in_shard;
  }
  EXPECT_EQ(tensors, 20493);
  EXPECT_EQ(parameters, 49122681728);
  EXPECT_EQ(bytes, 98245528576);
}

TEST(Export, ATensorLargerThanAShardHasItsOwn) {
  const std::vector<ExportShard> shards = make_export_shards(config_of({}).model, {.max_shard_bytes = 1});
  EXPECT_EQ(shards.size(), model::parameter_specs(config_of({}).model).size());
  for (const ExportShard& shard : shards) EXPECT_EQ(shard.tensors.size(), 1u);
}

TEST(Export, DoublesAreRoundedOnce) {
  std::mt19937_64 random(9);
  std::normal_distribution<double> normal;
  for (int i = 0; i < 20000; ++i) {
    // Near the middle between two bf16 numbers, where rounding twice goes wrong.
    const auto base = static_cast<float>(bf16(static_cast<float>(normal(random))));
    const float next = std::bit_cast<float>(std::bit_cast<uint32_t>(base) + 0x10000u);
    const double middle = (static_cast<double>(base) + static_cast<double>(next)) / 2;
    const double value = middle * (1 + normal(random) * 1e-10);
    std::vector<char> bytes(sizeof value);
    std::memcpy(bytes.data(), &value, sizeof value);
    convert_values(bytes, DType::f64, DType::bf16);
    bf16 found;
    std::memcpy(&found, bytes.data(), sizeof found);
    const double error = std::abs(static_cast<double>(found) - value);
    ASSERT_LE(error, std::abs(static_cast<double>(base) - value));
    ASSERT_LE(error, std::abs(static_cast<double>(next) - value));
  }
}

TEST(Export, NothingIsOverwrittenOrLeftHalfWritten) {
  const TemporaryFolder folder;
  const fs::path checkpoint = folder.path() / "c", output = folder.path() / "out";
  const Values values = write_checkpoint(checkpoint, config_of({}), 1);
  fs::create_directory(output);
  export_checkpoint(checkpoint, output, {});  // an empty folder is as good as none
  EXPECT_EQ(message([&] { export_checkpoint(checkpoint, output, {}); }),
            output.string() + ": exists, expected a new folder or an empty one");
  EXPECT_EQ(message([&] { import_model(output, checkpoint, {}); }),
            checkpoint.string() + ": exists, expected a new folder");
  // A damaged tensor is found in the middle of the way.
  std::string shard = io::read_file(checkpoint / "shard-00000.h5");
  const std::vector<float>& tensor = values.at("model.norm.weight");
  const size_t at =
      shard.find(std::string(reinterpret_cast<const char*>(tensor.data()), tensor.size() * sizeof(float)));
  ASSERT_NE(at, std::string::npos);
  shard[at] = static_cast<char>(shard[at] ^ 4);
  io::write_file_atomically(checkpoint / "shard-00000.h5", shard);
  const fs::path other = folder.path() / "other";
  EXPECT_THAT(message([&] { export_checkpoint(checkpoint, other, {}); }), testing::HasSubstr("checksum"));
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("c", "out"));
}

TEST(Export, AWriterThatIsNotCommittedLeavesNothing) {
  const TemporaryFolder folder;
  std::vector<float> values(4, 1.0f);
  {
    CheckpointWriter writer(folder.path() / "a", {});
    writer.write({"parameters/x", {4}, 0, 4, TensorView(values.data(), DType::f32, {4})});
    CheckpointWriter moved(std::move(writer));
  }
  EXPECT_TRUE(names_in(folder.path()).empty());
  CheckpointWriter b(folder.path() / "b", {});
  b.write({"parameters/x", {4}, 0, 4, TensorView(values.data(), DType::f32, {4})});
  CheckpointWriter c(folder.path() / "c", {});
  c = std::move(b);
  c.commit();
  EXPECT_THAT(names_in(folder.path()), testing::ElementsAre("b"));
  CheckpointReader first(folder.path() / "b");
  CheckpointReader reader(std::move(first));
  std::vector<float> read(4, NAN);
  reader.load({"parameters/x", {4}, 0, 4, TensorView(read.data(), DType::f32, {4})});
  EXPECT_EQ(read, values);
}

// ---- Bad input ----

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

HfModel hf_model(const std::vector<std::string>& overrides, const TokenizerIdentity& tokenizer = {}) {
  return {config_of(overrides).model, 16, DType::f32, tokenizer, false, std::nullopt};
}

nlohmann::json hf_json(const std::vector<std::string>& overrides, const TokenizerIdentity& tokenizer = {}) {
  return nlohmann::json::parse(to_hf_config(hf_model(overrides, tokenizer)));
}

std::vector<std::string> with(std::vector<std::string> list, const std::vector<std::string>& more) {
  list.insert(list.end(), more.begin(), more.end());
  return list;
}

const std::vector<std::string> plain = {"model.residual=standard", "model.attn_res_block_size=null",
                                        "model.q_lora_rank=null"};

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

TEST(Export, DocumentsApartThereAndBack) {
  const TemporaryFolder folder;
  const Config config = config_of(with(plain, {"data.document_mask=true"}));
  write_checkpoint(folder.path() / "unknown", config, 1);
  EXPECT_THAT(message([&] { export_checkpoint(folder.path() / "unknown", folder.path() / "x", {}); }),
              testing::HasSubstr("data.document_mask: the token that ends a document is unknown"));
  EXPECT_FALSE(fs::exists(folder.path() / "x"));
  write_checkpoint(folder.path() / "c", config, 1, TokenizerIdentity{"", {7, std::nullopt, {7}}});
  export_checkpoint(folder.path() / "c", folder.path() / "a", {});
  EXPECT_TRUE(fs::exists(folder.path() / "a/modeling_lamina.py"));
  import_model(folder.path() / "a", folder.path() / "plain", {});
  import_model(folder.path() / "a", folder.path() / "back", config);
  EXPECT_TRUE(parse_config(read_checkpoint_info(folder.path() / "plain").config_yaml, "c").data.document_mask);
  EXPECT_EQ(message([&] { import_model(folder.path() / "a", folder.path() / "no", config_of(plain)); }),
            (folder.path() / "a/config.json").string() +
                ": document_end_token_id: 7 found, expected none with data.document_mask: false in the configuration");
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

TEST(Export, TheTokenizerItselfGoesWithTheModel) {
  const TemporaryFolder folder;
  const Config config = config_of(with(plain, {"model.vocab_size=257"}));
  write_checkpoint(folder.path() / "c", config, 1, {}, make_tokenizer("bytes").get());
  write_checkpoint(folder.path() / "without", config, 1);
  EXPECT_EQ(export_checkpoint(folder.path() / "c", folder.path() / "a", {}).no_tokenizer, "");
  EXPECT_THAT(names_in(folder.path() / "a"), testing::IsSupersetOf({"tokenizer.json", "tokenizer_config.json"}));
  const ExportSummary none = export_checkpoint(folder.path() / "without", folder.path() / "none", {});
  EXPECT_EQ(none.no_tokenizer, "the checkpoint has none, and its training data is not there");
  import_model(folder.path() / "a", folder.path() / "back", {});
  EXPECT_EQ(read_checkpoint_info(folder.path() / "back").tokenizer, (StoredTokenizer{"bytes", ""}));
  export_checkpoint(folder.path() / "back", folder.path() / "b", {});
  EXPECT_EQ(contents(folder.path() / "a"), contents(folder.path() / "b"));
}

TEST(Export, TheCardSaysWhatIsKnown) {
  const TemporaryFolder folder;
  const fs::path checkpoint = folder.path() / "run/checkpoints/step-00000007";
  CheckpointInfo info;
  info.step = 7;
  info.sequences_consumed = 14;
  info.seed = 3;
  info.program_version = "1.2.3";
  info.sampler_fingerprint = "seq_len 16; tokenizer 0123456789abcdef; train 900 tokens 00000000000000aa";
  info.extra = {{"commit", "abcdef0123"}};
  const Config config = config_of({});
  info.config_yaml = to_yaml(config);
  const HfModel hf{config.model, 16, DType::bf16, {}, false, {}};
  const auto has = [&](const std::vector<std::string>& parts) {
    const std::string card = model_card(checkpoint, info, config, hf, {"lamina 9.9.9", "bytes", true});
    for (const std::string& part : parts) EXPECT_THAT(card, testing::HasSubstr(part));
  };
  has({"\n# run\n", "7 of 10 steps, 14 sequences of 16 tokens (224 tokens); AdamW", "seed 3",
       "| loss | not known: the checkpoint lies in no run folder |",
       "`data/none`, weight 1, 900 tokens (hash 00000000000000aa)",
       "checkpoint by lamina 1.2.3 (abcdef0123), exported by lamina 9.9.9",
       "Attention Residuals over blocks of 2 layers", "trust_remote_code=True",
       "- residual: block_attnres: kimi_linear has no Attention Residuals"});
  fs::create_directories(checkpoint);
  io::write_file_atomically(folder.path() / "run/metrics.jsonl",
                            std::string_view("{\"step\": 5, \"loss\": 9, \"validation_loss\": 3.5}\n{\"step\": 7, "
                                             "\"loss\": 2.25}\n{\"step\": 8, \"loss\": 1, \"validation_loss\": 1}\n{"));
  has({"| loss | 2.2500 in step 7, 3.5000 in the validation of step 5 (nats per token) |"});
  info.extra = {{"contents", parameters_only}, {"imported_from", "somewhere"}};
  has({"imported from `somewhere`"});
}

TEST(Export, TheTokenizerGoesWithTheModel) {
  const TemporaryFolder folder;
  const TokenizerIdentity tokenizer{"0123456789abcdef", {7, std::nullopt, {7}}};
  write_checkpoint(folder.path() / "c", config_of(plain), 1, tokenizer);
  EXPECT_TRUE(export_checkpoint(folder.path() / "c", folder.path() / "a", {}).has_token_ids);
  const auto json = nlohmann::json::parse(io::read_file(folder.path() / "a/config.json"));
  EXPECT_EQ(json.at("eos_token_id"), 7);
  import_model(folder.path() / "a", folder.path() / "back", {});
  const TokenizerIdentity back = stored_tokenizer(read_checkpoint_info(folder.path() / "back"));
  EXPECT_EQ(back.hash, tokenizer.hash);
  EXPECT_EQ(back.ids, tokenizer.ids);
  export_checkpoint(folder.path() / "back", folder.path() / "b", {});
  EXPECT_EQ(contents(folder.path() / "a"), contents(folder.path() / "b"));
  write_checkpoint(folder.path() / "older", config_of(plain), 1);
  EXPECT_FALSE(export_checkpoint(folder.path() / "older", folder.path() / "unknown", {}).has_token_ids);
}

TEST(Export, ATiedHeadIsWrittenOutAndReadBack) {
  const TemporaryFolder folder;
  const Config tied = config_of(with(plain, {"model.tie_word_embeddings=true"}));
  const Values values = write_checkpoint(folder.path() / "c", tied, 2);
  const ExportSummary first = export_checkpoint(folder.path() / "c", folder.path() / "a", {.dtype = DType::f32});
  const fs::path config_file = folder.path() / "a/config.json", shard = "model-00001-of-00001.safetensors";
  const std::string config_text = io::read_file(config_file);
  const auto json = nlohmann::json::parse(config_text);
  EXPECT_EQ(json.at("model_type"), "kimi_linear");
  EXPECT_EQ(json.at("tie_word_embeddings"), false);
  EXPECT_EQ(json.at("tied_head_written_out"), true);
  const SafetensorsFile file(folder.path() / "a" / shard);
  std::vector<float> head(31 * 12);
  file.read(head_tensor, {reinterpret_cast<char*>(head.data()), head.size() * sizeof(float)});
  EXPECT_EQ(head, values.at(embedding_tensor));
  EXPECT_EQ(first.num_parameters, model::num_parameters(tied.model) + 31 * 12);

  for (const auto& experiment : {std::optional<Config>(tied), std::optional<Config>()}) {
    const std::string name = experiment ? "back" : "plain";
    EXPECT_EQ(import_model(folder.path() / "a", folder.path() / name, experiment).hash, first.hash);
    EXPECT_EQ(list_checkpoint_tensors(folder.path() / name).size(), values.size()) << "one matrix again";
    export_checkpoint(folder.path() / name, folder.path() / (name + "-again"), {.dtype = DType::f32});
    EXPECT_EQ(contents(folder.path() / "a"), contents(folder.path() / (name + "-again")));
  }
  EXPECT_THAT(message([&] { import_model(folder.path() / "a", folder.path() / "x", config_of(plain)); }),
              testing::HasSubstr("config.json: model.tie_word_embeddings: true found, expected false"));

  // Another program trained the two matrices apart.
  std::string bytes = io::read_file(folder.path() / "a" / shard);
  const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(head.data()), 48));
  ASSERT_NE(at, std::string::npos);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  io::write_file_atomically(folder.path() / "a" / shard, bytes);
  EXPECT_THAT(message([&] { import_model(folder.path() / "a", folder.path() / "x", {}); }),
              testing::HasSubstr("config.json: lm_head.weight differs from model.embed_tokens.weight"));
  EXPECT_FALSE(fs::exists(folder.path() / "x"));
  std::string apart = config_text;
  const std::string key = "  \"tied_head_written_out\": true,\n";
  io::write_file_atomically(config_file, apart.erase(apart.find(key), key.size()));
  import_model(folder.path() / "a", folder.path() / "x", {});
  EXPECT_EQ(list_checkpoint_tensors(folder.path() / "x").size(), values.size() + 1);
}

}  // namespace
}  // namespace lamina
