#include "trainer/export/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>

#include "tests/trainer/export_support.h"
#include "trainer/export/export_values.h"
#include "trainer/export/model_card.h"

namespace lamina {
namespace {

using namespace testing_export;

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
