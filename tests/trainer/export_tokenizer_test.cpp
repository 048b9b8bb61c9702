#include "trainer/export/export_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "core/io/file.h"
#include "data/tokenizer_training.h"
#include "tests/trainer/checkpoint_support.h"
#include "trainer/export/sentencepiece_model.h"

namespace lamina {
namespace {

using nlohmann::json;
using testing_checkpoint::TemporaryFolder;

std::string words(int count, unsigned seed) {
  const std::vector<std::string> all = {"the",  "quick", "brown", "fox",     "residual", "attention",
                                        "über", "naïve", "<tag>", "0x41 12", "a"};
  std::mt19937 random(seed);
  std::string text;
  for (int i = 0; i < count; ++i) text += all[random() % all.size()] + (random() % 9 == 0 ? "\n" : " ");
  return text;
}

std::unique_ptr<Tokenizer> train(const TemporaryFolder& folder, const std::string& type) {
  // Without the slash, of which </s> is spelt.
  io::write_file_atomically(folder.path() / "text", words(4000, 1) + "0123456789 ABCDEF <0x> ABCDEF 0123456789\n");
  const std::string model = (folder.path() / type).string();
  TokenizerTrainingOptions options;
  options.model_type = type;
  options.vocab_size = type == "bpe" ? 340 : 310;
  options.output = model;
  options.inputs = {(folder.path() / "text").string()};
  options.show_progress = false;
  train_tokenizer(options);
  return make_tokenizer("sentencepiece:" + model);
}

json parsed(const TokenizerFiles& files, const std::string& name) {
  EXPECT_EQ(files.reason, "");
  return json::parse(files.contents.at(name));
}

std::vector<std::string> characters(const std::string& text) {
  std::vector<std::string> all;
  for (const char c : text) {
    if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) all.emplace_back();
    all.back() += c;
  }
  return all;
}

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size())
    text.replace(at, what.size(), by);
  return text;
}

std::string byte_name(unsigned char byte) {
  return fmt::format("<0x{:02X}>", byte);
}

// How the format defines byte-pair encoding: of all neighbours the earliest merge, the leftmost one first.
std::vector<int32_t> encode_bpe(const json& model, const std::string& text) {
  const json& vocabulary = model.at("vocab");
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (const json& merge : model.at("merges")) ranks.emplace(std::pair{merge[0], merge[1]}, ranks.size());
  std::vector<std::string> parts;
  for (const std::string& character : characters(text)) {
    if (vocabulary.contains(character))
      parts.push_back(character);
    else
      for (const char byte : character) parts.push_back(byte_name(static_cast<unsigned char>(byte)));
  }
  for (;;) {
    size_t best = ranks.size(), at = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i)
      if (const auto found = ranks.find({parts[i], parts[i + 1]}); found != ranks.end() && found->second < best) {
        best = found->second;
        at = i;
      }
    if (best == ranks.size()) break;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& part : parts) ids.push_back(vocabulary.at(part));
  return ids;
}

// And the unigram model: the likeliest cut into pieces; a character that is no piece is its bytes.
std::vector<int32_t> encode_unigram(const json& model, const std::string& text) {
  std::map<std::string, std::pair<double, int32_t>> pieces;
  double least = 0;
  for (const json& piece : model.at("vocab")) {
    pieces.emplace(piece[0], std::pair<double, int32_t>{piece[1], static_cast<int32_t>(pieces.size())});
    least = std::min(least, piece[1].get<double>());
  }
  const std::vector<std::string> all = characters(text);
  std::vector<double> score(all.size() + 1, -INFINITY);
  std::vector<size_t> from(all.size() + 1, 0);
  score[0] = 0;
  for (size_t begin = 0; begin < all.size(); ++begin) {
    std::string piece;
    for (size_t end = begin + 1; end <= std::min(begin + 16, all.size()); ++end) {
      piece += all[end - 1];
      const auto found = pieces.find(piece);
      if (found == pieces.end() && end > begin + 1) continue;
      const double here = score[begin] + (found == pieces.end() ? least - 10 : found->second.first);
      if (here > score[end]) {
        score[end] = here;
        from[end] = begin;
      }
    }
  }
  std::vector<std::vector<int32_t>> backwards;
  for (size_t end = all.size(); end > 0; end = from[end]) {
    std::string piece;
    for (size_t i = from[end]; i < end; ++i) piece += all[i];
    backwards.emplace_back();
    if (const auto found = pieces.find(piece); found != pieces.end())
      backwards.back().push_back(found->second.second);
    else
      for (const char byte : piece)
        backwards.back().push_back(pieces.at(byte_name(static_cast<unsigned char>(byte))).second);
  }
  std::vector<int32_t> ids;
  for (size_t i = backwards.size(); i-- > 0;) ids.insert(ids.end(), backwards[i].begin(), backwards[i].end());
  return ids;
}

std::vector<int32_t> encode(const std::string& type, const json& model, const std::string& text,
                            const std::string& splits) {
  if (type == "bpe") return encode_bpe(model, text);
  std::vector<int32_t> ids;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = splits.find(text[begin]) != std::string::npos
                           ? begin + 1
                           : std::min(text.find_first_of(splits, begin), text.size());
    const std::vector<int32_t> part = encode_unigram(model, text.substr(begin, end - begin));
    ids.insert(ids.end(), part.begin(), part.end());
    begin = end;
  }
  return ids;
}

TEST(ExportTokenizer, SentencePieceGivesTheSameTokens) {
  const TemporaryFolder folder;
  for (const std::string type : {"bpe", "unigram"}) {
    const auto tokenizer = train(folder, type);
    const TokenizerFiles files = tokenizer_files(*tokenizer);
    EXPECT_EQ(files.contents.at("tokenizer.model"), tokenizer->model());
    const json out = parsed(files, "tokenizer.json");
    EXPECT_EQ(out.at("normalizer").at("normalizers"),
              json::array({{{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\xe2\x96\x81"}}}));
    std::string splits;
    if (!out.at("pre_tokenizer").is_null())
      for (const json& split : out.at("pre_tokenizer").at("pretokenizers"))
        splits += split.at("pattern").at("String").get<std::string>();
    EXPECT_EQ(splits.find('/') != std::string::npos, type == "unigram") << splits;
    for (const std::string& text :
         {words(200, 7), std::string("  two spaces\n\n\ttab \r\n \xe2\x9c\x93 \xe4\xbd\xa0\xe5\xa5\xbd end "),
          std::string("</s> <0x41> <s> <unk>"), std::string("x"), std::string("\xe2\x96\x81 a"), std::string()}) {
      std::vector<int32_t> expected;
      tokenizer->encode(text, expected);
      const std::string normalized = replaced(text, " ", "\xe2\x96\x81");
      EXPECT_EQ(encode(type, out.at("model"), normalized, splits), expected) << type << ": " << text;
    }
    const json configuration = parsed(files, "tokenizer_config.json");
    EXPECT_EQ(configuration.at("bos_token"), "</s>") << "a text begins after the token that ended the one before";
    EXPECT_EQ(configuration.at("eos_token"), "</s>");
    EXPECT_EQ(configuration.at("split_special_tokens"), true);
    EXPECT_FALSE(configuration.contains("pad_token"));
    EXPECT_EQ(out.at("post_processor").at("special_tokens").at("</s>").at("ids"), json::array({2}));
    std::vector<std::string> special;
    for (const json& token : out.at("added_tokens")) special.push_back(token.at("content"));
    EXPECT_THAT(special, testing::ElementsAre("<unk>", "<s>", "</s>"));
  }
}

TEST(ExportTokenizer, Bytes) {
  const TokenizerFiles files = tokenizer_files(*make_tokenizer("bytes"));
  EXPECT_FALSE(files.contents.contains("tokenizer.model"));
  const json out = parsed(files, "tokenizer.json"), vocabulary = out.at("model").at("vocab");
  EXPECT_EQ(vocabulary.size(), 257u);
  EXPECT_EQ(vocabulary.at("A"), 65);
  EXPECT_EQ(vocabulary.at("\xc4\xa0"), 32) << "U+0120, as GPT-2 spells the space";
  EXPECT_EQ(vocabulary.at("\xc4\x8a"), 10) << "U+010A, the line feed";
  EXPECT_EQ(vocabulary.at("\xc4\x80"), 0);
  EXPECT_EQ(vocabulary.at("\xc3\xbf"), 255);
  EXPECT_EQ(vocabulary.at("<|end_of_document|>"), 256);
  EXPECT_TRUE(out.at("model").at("merges").empty());
  EXPECT_EQ(out.at("pre_tokenizer").at("use_regex"), false);
  std::vector<int> ids;
  for (const json& id : vocabulary) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (int i = 0; i < 257; ++i) EXPECT_EQ(ids[static_cast<size_t>(i)], i);
}

std::vector<int32_t> tokens_of(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> tokens;
  tokenizer.encode(text, tokens);
  return tokens;
}

// A folder with these files, as `lamina import` finds it.
void write_all(const TemporaryFolder& folder, const TokenizerFiles& files) {
  for (const auto& [name, content] : files.contents) io::write_file_atomically(folder.path() / name, content);
}

TEST(ExportTokenizer, ATokenizerJsonStaysAsItWas) {
  const json fixture = json::parse(io::read_file(LAMINA_SOURCE_DIR "/tests/data/tokenizers.json"));
  const TemporaryFolder folder, exported;
  const std::string file = fixture.at("cases")[1].at("file").dump(1);
  io::write_file_atomically(folder.path() / "tokenizer.json", file);
  io::write_file_atomically(
      folder.path() / "tokenizer_config.json",
      R"({"eos_token": "<|begin|>", "chat_template": "x", "tokenizer_class": "Other", "auto_map": {}})");
  const auto tokenizer = make_tokenizer("huggingface:" + folder.path().string(), {"<|endoftext|>", "", {}});
  const TokenizerFiles files = tokenizer_files(*tokenizer);
  EXPECT_EQ(files.contents.at("tokenizer.json"), file);
  const json configuration = parsed(files, "tokenizer_config.json");
  EXPECT_EQ(configuration.at("eos_token"), "<|endoftext|>") << "which ended documents";
  EXPECT_EQ(configuration.at("chat_template"), "x");
  EXPECT_EQ(configuration.at("tokenizer_class"), "PreTrainedTokenizerFast");
  EXPECT_FALSE(configuration.contains("auto_map"));
  write_all(exported, files);
  EXPECT_EQ(make_tokenizer("huggingface:" + exported.path().string())->hash(), tokenizer->hash());
}

TEST(ExportTokenizer, ATiktokenFileBecomesATokenizerJsonWithTheSameTokens) {
  constexpr std::string_view digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string file;
  for (size_t byte = 0; byte < 256; ++byte)
    file += fmt::format("{}{}== {}\n", digits[byte >> 2], digits[(byte & 3) << 4], byte);
  file += "dGg= 256\nYmM= 257\nYWI= 258\ndGhl 259\nYWJj 260\nIHRo 261\n";  // th, bc, ab, the, abc, " th"
  const TemporaryFolder folder, exported;
  io::write_file_atomically(folder.path() / "tiktoken.model", file);
  for (const std::string pattern : {"kimi", "o200k", "cl100k", "[a-z ]{1,9}+"}) {
    const auto tokenizer =
        make_tokenizer("tiktoken:" + folder.path().string(), {"[EOS]", pattern, {"[BOS]=262", "[EOS]=265"}});
    const TokenizerFiles files = tokenizer_files(*tokenizer);
    EXPECT_EQ(files.reason.empty(), pattern != "[a-z ]{1,9}+") << files.reason;
    EXPECT_EQ(files.contents.at(files.reason.empty() ? "tiktoken.model" : "vocabulary.tiktoken"), file);
    write_all(exported, files);
    const std::string name = files.reason.empty() ? "/tiktoken.model" : "/vocabulary.tiktoken";
    const auto again = make_tokenizer("tiktoken:" + exported.path().string() + name);
    EXPECT_EQ(again->hash(), tokenizer->hash());
    if (!files.reason.empty()) continue;
    const auto as_json = make_tokenizer("huggingface:" + exported.path().string());
    EXPECT_EQ(as_json->end_of_document(), 265);
    EXPECT_EQ(as_json->vocab_size(), std::max<int64_t>(tokenizer->vocab_size(), 266));
    for (const std::string& text :
         {words(300, 4), std::string("the abc babc 1234567 THE \n\n  [EOS] \xe4\xbd\xa0\xe5\xa5\xbd it's  ")}) {
      std::vector<int32_t> expected = tokens_of(*tokenizer, text);
      expected.insert(expected.begin(), 265);  // what a text begins after
      EXPECT_EQ(tokens_of(*as_json, text), expected) << pattern;
    }
  }
}

// A message of protobuf's wire format.
std::string field(int number, const std::string& bytes) {
  return static_cast<char>(number << 3 | 2) + std::string(1, static_cast<char>(bytes.size())) + bytes;
}

TEST(ExportTokenizer, WhatTheFormatCannotSayIsNotWritten) {
  const TemporaryFolder folder;
  const auto tokenizer = train(folder, "bpe");
  // Later fields replace earlier ones.
  const auto reason = [&](const std::string& more) {
    const TokenizerFiles files =
        tokenizer_files(*make_stored_tokenizer("sentencepiece", tokenizer->model() + more, "changed"));
    EXPECT_EQ(files.contents.size(), 1u);
    EXPECT_TRUE(files.contents.contains("sentencepiece.model")) << "which AutoTokenizer doesn't look for";
    return files.reason;
  };
  EXPECT_EQ(reason(field(3, std::string("\x20\x01", 2))), "it removes whitespace");
  const std::string other =
      replaced(tokenizer->model(), "\xe2\x96\x81", "\xe2\x96\x82");  // another letter instead of the space
  EXPECT_EQ(tokenizer_files(*make_stored_tokenizer("sentencepiece", other, "x")).reason,
            "it has no piece for the space");
  EXPECT_EQ(reason(field(3, std::string("\x28\x00", 2))), "its spaces are not at the beginning of pieces");
  const SentencePieceModel model = parse_sentencepiece_model(tokenizer->model());
  EXPECT_EQ(model.pieces.size(), 340u);
  EXPECT_EQ(model.algorithm, SentencePieceModel::Algorithm::bpe);
  EXPECT_TRUE(model.byte_fallback);
  EXPECT_FALSE(model.add_dummy_prefix || model.remove_extra_whitespaces || model.has_character_map);
  EXPECT_EQ(model.pieces[2].kind, SentencePieceModel::Kind::control);
  EXPECT_EQ(model.pieces[3].kind, SentencePieceModel::Kind::byte);
  EXPECT_THROW(parse_sentencepiece_model(tokenizer->model().substr(0, 1001)), Error);
  EXPECT_THROW(parse_sentencepiece_model("\x0b"), Error);
}

}  // namespace
}  // namespace lamina
