// A scratch folder and short texts for the tests of data/.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "data/prepare.h"
#include "data/token_file.h"
#include "data/tokenizer_training.h"

namespace lamina {

class DataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / fmt::format("lamina-data-test-{}", ::getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }
  size_t num_entries() const {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(folder_), std::filesystem::directory_iterator()));
  }

  PrepareOptions options(const std::string& output, std::vector<std::string> inputs) const {
    PrepareOptions result;
    result.output = path(output);
    result.inputs = std::move(inputs);
    result.show_progress = false;
    return result;
  }

  // A SentencePiece model of 400 pieces.
  std::string train_model(const std::string& name = "test.model", const std::string& type = "bpe") const {
    TokenizerTrainingOptions training;
    training.model_type = type;
    training.vocab_size = type == "bpe" ? 400 : 310;
    training.output = path(name);
    training.inputs = {write(name + ".txt", words(20'000, 5))};
    training.show_progress = false;
    train_tokenizer(training);
    std::filesystem::remove(training.inputs.front());
    return training.output;
  }

  static std::string words(size_t num_bytes, unsigned seed) {
    static const std::vector<std::string> vocabulary{"the",  "quick", "brown", "fox",  "jumps",    "over",
                                                     "lazy", "dog",   "naïve", "café", "residual", "attention",
                                                     "42",   "1997",  "a",     "of"};
    std::mt19937 random(seed);
    std::string text;
    while (text.size() < num_bytes) {
      text += vocabulary[random() % vocabulary.size()];
      const auto separator = random() % 20;
      text += separator == 0 ? "\n" : separator == 1 ? "  " : " ";
    }
    return text;
  }

  static std::vector<int32_t> all_tokens(const TokenFile& file) {
    std::vector<int32_t> tokens(static_cast<size_t>(file.num_tokens()));
    file.read(0, tokens);
    return tokens;
  }

  template <class F>
  static std::string error_of(F&& call) {
    try {
      call();
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "no Error was thrown";
    return "";
  }

  std::filesystem::path folder_;
};

}  // namespace lamina
