#include "configs/schema/files.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "configs/schema/decode.h"
#include "core/base/error.h"

namespace lamina {
namespace {

using testing::HasSubstr;

class ConfigFiles : public testing::Test {
 protected:
  ConfigFiles() : folder_(testing::TempDir() + "/config_files_" + std::to_string(::getpid())) {
    std::filesystem::create_directories(folder_ / "deep");
    write("model.yaml",
          "model: {hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, kv_lora_rank: 16, qk_nope_head_dim: "
          "8, v_head_dim: 16,\n"
          "  intermediate_size: 96}\n");
    write("deep/rest.yaml",
          "include: [../model.yaml, data.yaml]\n"
          "train: {num_steps: 100, global_batch_size: 8, micro_batch_size: 2, optimizer: {lr: 1e-3}, lr_schedule: "
          "{name: constant}}\n");
    write("deep/data.yaml",
          "data: {seq_len: 32, train: [{path: data/a}], validation: {path: data/v, num_sequences: 3}}\n");
  }
  ~ConfigFiles() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  Config load(const std::string& name, const std::vector<std::string>& overrides = {}) {
    return load_config((folder_ / name).string(), overrides);
  }
  std::string refusal(const std::string& name, const std::vector<std::string>& overrides = {}) {
    try {
      load(name, overrides);
    } catch (const Error& error) {
      std::string text = error.what();  // without the folder
      for (size_t at = text.find(folder_.string()); at != std::string::npos; at = text.find(folder_.string()))
        text.erase(at, folder_.string().size() + 1);
      return text;
    }
    return "no error";
  }

  std::filesystem::path folder_;
};

TEST_F(ConfigFiles, ALaterWordReplacesAnEarlierOne) {
  write("a.yaml",
        "include: deep/rest.yaml\nmodel:\n  hidden_size: 32\ntrain:\n  optimizer: {weight_decay: 0.5}\ndata:\n  "
        "validation:\n"
        "  train: [{path: data/b}]\n");
  const Config config = load("a.yaml", {"train.num_steps=7"});
  EXPECT_EQ(config.model.hidden_size, 32);
  EXPECT_EQ(config.model.intermediate_size, 96);
  EXPECT_EQ(config.train.optimizer.lr, 1e-3);
  EXPECT_EQ(config.train.optimizer.weight_decay, 0.5);
  EXPECT_EQ(config.train.num_steps, 7);
  EXPECT_EQ(config.data.validation.path, "");  // taken away
  ASSERT_EQ(config.data.train.size(), 1u);
  EXPECT_EQ(config.data.train[0].path, "data/b");  // lists are whole values

  write("b.yaml", "include: [deep/rest.yaml, wide.yaml]\n");
  write("wide.yaml", "model: {hidden_size: 128}\n");
  EXPECT_EQ(load("b.yaml").model.hidden_size, 128);
}

TEST_F(ConfigFiles, MistakesNameTheFileTheyAreIn) {
  write("a.yaml", "include: bad.yaml\n");
  write("bad.yaml", "include: deep/rest.yaml\n\nmodel:\n  hidden_size: many\n");
  EXPECT_EQ(refusal("a.yaml"), "bad.yaml:4: model.hidden_size: found 'many', expected an integer");
  write("bad.yaml", "include: deep/rest.yaml\nmodle: {}\n");
  EXPECT_EQ(refusal("a.yaml"), "bad.yaml:2: modle: unknown key, did you mean model?");
  write("bad.yaml", "include: a.yaml\n");
  EXPECT_EQ(refusal("a.yaml"), "bad.yaml:1: include: found a.yaml, which includes this file");
  EXPECT_EQ(refusal("bad.yaml"), "a.yaml:1: include: found bad.yaml, which includes this file");
  write("bad.yaml", "include: [none.yaml]\n");
  EXPECT_EQ(refusal("a.yaml"), "bad.yaml:1: include: none.yaml: no such file, expected a configuration");
  for (const char* wrong : {"{a: b}", "[[x]]", "", "[\"\"]"}) {
    write("bad.yaml", std::string("include: ") + wrong + "\n");
    EXPECT_THAT(refusal("a.yaml"), HasSubstr("expected a file or a list of files")) << wrong;
  }
  write("bad.yaml", "include: deep/rest.yaml\ntrain: {include: x.yaml}\n");
  EXPECT_THAT(refusal("bad.yaml"), HasSubstr("train.include: unknown key"));
}

TEST_F(ConfigFiles, PathsNameTheHomeFolderAndVariables) {
  ASSERT_EQ(setenv("HOME", "/home/ann", 1), 0);
  ASSERT_EQ(setenv("LAMINA_TEST_SCRATCH", "/big disk", 1), 0);
  ASSERT_EQ(unsetenv("LAMINA_TEST_NONE"), 0);
  write("a.yaml", "include: deep/rest.yaml\nrun: {output_dir: ~/runs/x}\n");
  const Config config =
      load("a.yaml", {"data.train.0.path=$LAMINA_TEST_SCRATCH/a", "data.validation.path=${LAMINA_TEST_SCRATCH}b$$c",
                      "train.eval.tasks=[~/a.jsonl, b.jsonl]", "checkpoint.init_from='~'", "run.name=$x~"});
  EXPECT_EQ(config.run.output_dir, "/home/ann/runs/x");
  EXPECT_EQ(config.data.train[0].path, "/big disk/a");
  EXPECT_EQ(config.data.validation.path, "/big diskb$c");
  EXPECT_EQ(config.checkpoint.init_from, "/home/ann");
  EXPECT_THAT(config.train.eval.tasks, testing::ElementsAre("/home/ann/a.jsonl", "b.jsonl"));
  EXPECT_EQ(config.run.name, "$x~");  // no path
  EXPECT_EQ(parse_config(to_yaml(config), "stored").data.validation.path, "/big diskb$c");

  EXPECT_EQ(refusal("a.yaml", {"run.output_dir=$LAMINA_TEST_NONE/x"}),
            "command line: run.output_dir=$LAMINA_TEST_NONE/x: run.output_dir: found $LAMINA_TEST_NONE/x, and the "
            "environment variable "
            "LAMINA_TEST_NONE is not set");
  EXPECT_THAT(refusal("a.yaml", {"run.output_dir=~bob/x"}), HasSubstr("found ~bob/x, expected ~/"));
  for (const char* wrong : {"a$", "a$/b", "${HOME", "${}", "$ x"})
    EXPECT_THAT(refusal("a.yaml", {std::string("run.output_dir='") + wrong + "'"}), HasSubstr("after a dollar"))
        << wrong;
}

}  // namespace
}  // namespace lamina
