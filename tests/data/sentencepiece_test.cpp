// Models of every kind: their tokens and their text are those of the library, and no space or character is lost on the way.
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <unordered_map>

#include "core/io/file.h"
#include "data/tokenizer.h"
#include "tests/data/support.h"

namespace lamina {
namespace {

class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(std::vector<std::string> lines) : lines_(std::move(lines)) {}
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  size_t next_ = 0;
};

class SentencePieceTest : public DataTest {
 protected:
  static std::string chinese(size_t num_characters, unsigned seed) {
    std::mt19937 random(seed);
    std::string text;
    for (size_t i = 0; i < num_characters; ++i) {
      text += std::string("\xe4\xb8") + static_cast<char>(0x80 + random() % 60);
      if (i % 40 == 39) text += '\n';
    }
    return text;
  }

  // A model as others make it: of `text`'s lines, with these options of the library.
  static std::string model_of(const std::string& text, std::unordered_map<std::string, std::string> options) {
    std::vector<std::string> lines;
    for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
      end = std::min(text.find('\n', begin), text.size());
      lines.push_back(text.substr(begin, end - begin));
    }
    Lines iterator(lines);
    options.insert({{"model_type", "bpe"}, {"vocab_size", "350"}, {"minloglevel", "2"}});
    std::string model;
    const auto status = sentencepiece::SentencePieceTrainer::Train(options, &iterator, &model);
    EXPECT_TRUE(status.ok()) << status.ToString();
    return model;
  }

  static std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
    std::vector<int32_t> tokens;
    tokenizer.encode(text, tokens);
    return tokens;
  }

  static int64_t num_bytes(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
    int64_t bytes = 0;
    int32_t previous = tokenizer.end_of_document();
    for (const int32_t token : tokens) bytes += tokenizer.num_bytes(token, std::exchange(previous, token));
    return bytes;
  }
};

const std::unordered_map<std::string, std::string> lossless{{"byte_fallback", "true"},
                                                            {"normalization_rule_name", "identity"},
                                                            {"add_dummy_prefix", "false"},
                                                            {"remove_extra_whitespaces", "false"}};

TEST_F(SentencePieceTest, ATextWithoutSpacesTrainsAPieceForTheSpace) {
  const std::string mixed = "\xe4\xb8\x80\xe4\xb8\x81 \xe4\xb8\x82 hello world  a b c d ";
  for (const std::string& text :
       {chinese(30'000, 1),
        chinese(30'000, 1) + "\xe4\xb8\x80 \xe4\xb8\x81"})  // none, and one so rare that it was dropped
    for (const char* type : {"bpe", "unigram"}) {
      TokenizerTrainingOptions training;
      training.model_type = type;
      training.vocab_size = training.model_type == "bpe" ? 400 : 322;
      training.inputs = {write("zh.txt", text)};
      training.output = path("zh.model");
      training.overwrite = true;
      training.show_progress = false;
      train_tokenizer(training);
      const auto tokenizer = make_tokenizer("sentencepiece:" + training.output);
      sentencepiece::SentencePieceProcessor library;
      ASSERT_TRUE(library.LoadFromSerializedProto(tokenizer->model()).ok());
      EXPECT_NE(library.PieceToId("\xe2\x96\x81"), library.unk_id());
      EXPECT_EQ(encode(*tokenizer, " ").size(), 1u);
      const std::vector<int32_t> tokens = encode(*tokenizer, mixed);
      EXPECT_EQ(tokens, library.EncodeAsIds(mixed));
      EXPECT_EQ(tokenizer->decode(tokens), mixed);
      EXPECT_EQ(num_bytes(*tokenizer, tokens), static_cast<int64_t>(mixed.size()));
    }
}

TEST_F(SentencePieceTest, WithoutAPieceForTheSpaceItIsAByte) {
  const std::string model = model_of(chinese(8000, 1), lossless);
  const auto tokenizer = make_stored_tokenizer("sentencepiece", model, "zh.model");
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(model).ok());
  EXPECT_EQ(library.DecodeIds(library.EncodeAsIds("a b")),
            "a\xe2\x96\x81"
            "b")
      << "what this is about";
  EXPECT_EQ(encode(*tokenizer, " "), std::vector<int32_t>{library.PieceToId("<0x20>")});
  for (const std::string& text : {std::string("a b"), std::string("  \xe4\xb8\x80\xe4\xb8\x81 \xe4\xb8\x82  "),
                                  std::string("\xe2\x96\x81 x"), words(3000, 2)}) {
    const std::vector<int32_t> tokens = encode(*tokenizer, text);
    EXPECT_EQ(tokenizer->decode(tokens), text);
    EXPECT_EQ(num_bytes(*tokenizer, tokens), static_cast<int64_t>(text.size()));
  }
  const std::string plain = chinese(500, 9);
  EXPECT_EQ(encode(*tokenizer, plain), library.EncodeAsIds(plain));
}

// As in Llama's: a text gets a space in front. It is no part of the text, and a text that is cut gets no second one.
TEST_F(SentencePieceTest, AModelThatPutsASpaceInFront) {
  auto options = lossless;
  options["add_dummy_prefix"] = "true";
  const std::string model = model_of(words(20'000, 5), options);
  write("llama.model", model);
  const auto tokenizer = make_tokenizer("sentencepiece:" + path("llama.model"));
  sentencepiece::SentencePieceProcessor library;
  ASSERT_TRUE(library.LoadFromSerializedProto(model).ok());
  for (const std::string& text : {std::string("the fox"), std::string(" the fox "), std::string("  "), std::string(),
                                  std::string("\nx"), words(3000, 2)}) {
    const std::vector<int32_t> tokens = encode(*tokenizer, text);
    EXPECT_EQ(tokens, library.EncodeAsIds(text)) << "[" << text << "]";
    EXPECT_EQ(tokenizer->decode(tokens), text);
    EXPECT_EQ(num_bytes(*tokenizer, tokens), static_cast<int64_t>(text.size()));
  }
  // Two documents, as they lie in a token file.
  std::vector<int32_t> two = encode(*tokenizer, "the fox");
  two.push_back(tokenizer->end_of_document());
  tokenizer->encode("the dog", two);
  EXPECT_EQ(tokenizer->decode(two), "the foxthe dog");
  const std::string text = words(1'300'000, 6);
  PrepareOptions o = this->options("out", {write("a.txt", text)});
  o.tokenizer = "sentencepiece:" + path("llama.model");
  EXPECT_EQ(prepare(o).num_changed_documents, 0);
  std::vector<int32_t> whole = encode(*tokenizer, text);
  EXPECT_TRUE(whole == library.EncodeAsIds(text));
  whole.push_back(tokenizer->end_of_document());
  EXPECT_TRUE(all_tokens(TokenFile::open(path("out"))) == whole);
}

TEST_F(SentencePieceTest, WhatAModelChangesIsCounted) {
  const auto changed = [&](const std::string& model, const std::vector<std::string>& documents) {
    PrepareOptions o = options("out", {});
    for (size_t i = 0; i < documents.size(); ++i) o.inputs.push_back(write(std::to_string(i), documents[i]));
    write("test.model", model);
    o.tokenizer = "sentencepiece:" + path("test.model");
    o.overwrite = true;
    return prepare(o).num_changed_documents;
  };
  const std::vector<std::string> documents{"the fox", "the  fox", "the \xef\xac\x81sh", "the \xe2\x96\x81 fox",
                                           "the \xe4\xb8\x80 fox"};
  EXPECT_EQ(changed(model_of(words(20'000, 5), lossless), documents), 1) << "U+2581 comes back as a space";
  auto normalizing = lossless;
  normalizing["normalization_rule_name"] = "nmt_nfkc";  // a ligature becomes two letters
  EXPECT_EQ(changed(model_of(words(20'000, 5), normalizing), documents), 2);
  auto trimming = lossless;
  trimming["remove_extra_whitespaces"] = "true";
  EXPECT_EQ(changed(model_of(words(20'000, 5), trimming), documents), 2)
      << "two spaces become one; so does U+2581 between two";
  auto without_bytes = lossless;
  without_bytes["byte_fallback"] = "false";
  without_bytes["vocab_size"] = "90";
  EXPECT_EQ(changed(model_of(words(20'000, 5), without_bytes), documents), 3) << "unknown characters are lost";
}

// The library's own decoder is right for whole texts; this one also for parts.
TEST_F(SentencePieceTest, TextOfTokensIsTheLibrarys) {
  for (const char* prefix : {"false", "true"}) {
    auto options = lossless;
    options["add_dummy_prefix"] = prefix;
    options["user_defined_symbols"] = "<tool>,two words";
    const std::string model = model_of(words(20'000, 5), options);
    const auto tokenizer = make_stored_tokenizer("sentencepiece", model, "x");
    sentencepiece::SentencePieceProcessor library;
    ASSERT_TRUE(library.LoadFromSerializedProto(model).ok());
    std::mt19937 random(8);
    for (int trial = 0; trial < 500; ++trial) {
      std::vector<int> tokens;  // any, but those of bytes: halves of characters become U+FFFD in the library
      while (tokens.size() < 12) {
        const int token = static_cast<int>(random() % 350);
        if (!library.IsByte(token) && !library.IsControl(token)) tokens.push_back(token);
      }
      EXPECT_EQ(tokenizer->decode(tokens), library.DecodeIds(tokens));
    }
  }
}

}  // namespace
}  // namespace lamina
