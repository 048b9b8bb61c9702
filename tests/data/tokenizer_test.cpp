#include "data/tokenizer.h"

#include "core/io/file.h"
#include "tests/data/support.h"

namespace lamina {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using TokenizerTest = DataTest;

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> tokens;
  tokenizer.encode(text, tokens);
  return tokens;
}

int64_t sum_of_bytes(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  int64_t bytes = 0;
  int32_t previous = tokenizer.end_of_document();
  for (const int32_t token : tokens) bytes += tokenizer.num_bytes(token, std::exchange(previous, token));
  return bytes;
}

TEST_F(TokenizerTest, BytesRoundTripEverything) {
  const auto tokenizer = make_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->end_of_document(), 256);
  std::string text;
  for (int i = 0; i < 1000; ++i) text.push_back(static_cast<char>(i));
  std::vector<int32_t> tokens{7};
  tokenizer->encode(text, tokens);
  ASSERT_EQ(tokens.size(), 1001u);
  EXPECT_EQ(tokens[0], 7) << "encode appends";
  EXPECT_EQ(tokens[256], 255);
  EXPECT_EQ(tokenizer->decode(std::span(tokens).subspan(1)), text);
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{104, 256, 105}), "hi");
  EXPECT_EQ(sum_of_bytes(*tokenizer, tokens), 1001);
  EXPECT_EQ(tokenizer->num_bytes(256, 0), 0);
  for (int32_t wrong : {-1, 257})
    EXPECT_THAT(error_of([&] { (void)tokenizer->decode(std::vector<int32_t>{wrong}); }),
                AllOf(HasSubstr(std::to_string(wrong)), HasSubstr("256")));
}

TEST_F(TokenizerTest, SentencePieceIsLosslessOnUtf8) {
  for (const char* type : {"bpe", "unigram"}) {
    const auto tokenizer = make_tokenizer("sentencepiece:" + train_model("test.model", type));
    std::filesystem::remove(path("test.model"));
    for (const std::string& text : {words(5000, 9), std::string("  two spaces\n\n\ttab \r\n ✓ 你好 \U0001F600 end "),
                                    std::string(" "), std::string("\n"), std::string(), std::string("x")}) {
      const std::vector<int32_t> tokens = encode(*tokenizer, text);
      EXPECT_EQ(tokenizer->decode(tokens), text);
      EXPECT_EQ(sum_of_bytes(*tokenizer, tokens), static_cast<int64_t>(text.size()));
      for (const int32_t token : tokens) ASSERT_TRUE(token >= 0 && token < tokenizer->vocab_size());
    }
    EXPECT_LT(encode(*tokenizer, words(5000, 9)).size(), 4000u) << "the vocabulary is of no use";
    EXPECT_EQ(tokenizer->num_bytes(tokenizer->end_of_document(), 5), 0);
    EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{tokenizer->end_of_document()}), "");
    EXPECT_THAT(error_of([&] { (void)tokenizer->decode(std::vector<int32_t>{400}); }), HasSubstr("400"));
  }
}

TEST_F(TokenizerTest, ASafeCutDoesNotChangeTheTokens) {
  const auto tokenizer = make_tokenizer("sentencepiece:" + train_model());
  const std::string text = words(6000, 21) + "   indented    more";
  std::mt19937 random(4);
  for (int trial = 0; trial < 300; ++trial) {
    const size_t begin = random() % 3000;
    std::string_view window = std::string_view(text).substr(begin, 1 + random() % 200);
    while ((static_cast<unsigned char>(window.front()) & 0xC0) == 0x80 && window.size() > 1) window.remove_prefix(1);
    const size_t cut = tokenizer->safe_cut(window);
    ASSERT_GE(cut, 1u);
    ASSERT_LE(cut, window.size());
    if (window.find(' ') == std::string_view::npos && window.find('\n') == std::string_view::npos) continue;
    // Whatever follows: the tokens of the two parts are the tokens of the whole.
    const std::string whole = std::string(window) + "residual attention";
    if (cut == 1 && window.size() > 1 && window.find(' ', 1) == std::string_view::npos && window[0] != '\n') continue;
    if (window.find_first_of(" \n", 1) == std::string_view::npos) continue;
    std::vector<int32_t> parts = encode(*tokenizer, std::string_view(whole).substr(0, cut));
    tokenizer->encode(std::string_view(whole).substr(cut), parts);
    EXPECT_EQ(parts, encode(*tokenizer, whole)) << "[" << window << "] cut at " << cut;
  }
  // Without a space: between two characters.
  EXPECT_EQ(tokenizer->safe_cut("ab\xc3\xa9"), 4u);
  EXPECT_EQ(tokenizer->safe_cut("ab\xc3"), 2u);
  EXPECT_EQ(tokenizer->safe_cut("ab\xe2\x9c"), 2u);
  EXPECT_EQ(tokenizer->safe_cut("ab\xf0\x9f\x98"), 2u);
  EXPECT_EQ(tokenizer->safe_cut("\x80\x80\x80\x80\x80\x80"), 6u);
  EXPECT_EQ(tokenizer->safe_cut("a    b"), 1u) << "not inside a run of spaces";
}

TEST_F(TokenizerTest, PaddingWhereThereIsOne) {
  EXPECT_FALSE(make_tokenizer("bytes")->padding().has_value());
  const std::string model = io::read_file(train_model());
  EXPECT_FALSE(make_stored_tokenizer("sentencepiece", model, "x")->padding().has_value());
  // trainer_spec.pad_piece: "<s>", which is a control piece.
  const std::string padded = model + std::string("\x12\x06\x82\x03\x03<s>");
  EXPECT_EQ(make_stored_tokenizer("sentencepiece", padded, "x")->padding(), 1);
}

TEST_F(TokenizerTest, HashesAndStoredCopies) {
  const auto bytes = make_tokenizer("bytes");
  const std::string file = train_model();
  const auto pieces = make_tokenizer("sentencepiece:" + file);
  EXPECT_EQ(bytes->name(), "bytes");
  EXPECT_EQ(pieces->name(), "sentencepiece");
  EXPECT_EQ(bytes->hash().size(), 16u);
  EXPECT_NE(bytes->hash(), pieces->hash());
  EXPECT_EQ(pieces->model(), io::read_file(file));
  const auto stored = make_stored_tokenizer(pieces->name(), pieces->model(), "x");
  EXPECT_EQ(stored->hash(), pieces->hash());
  EXPECT_EQ(encode(*stored, "the quick fox"), encode(*pieces, "the quick fox"));
}

TEST_F(TokenizerTest, WrongSpecsAndFiles) {
  EXPECT_THAT(error_of([] { make_tokenizer("gpt2"); }), AllOf(HasSubstr("gpt2"), HasSubstr("sentencepiece:FILE")));
  EXPECT_THAT(error_of([] { make_tokenizer("sentencepiece:"); }), HasSubstr("sentencepiece:FILE"));
  EXPECT_THAT(error_of([&] { make_tokenizer("sentencepiece:" + path("no.model")); }),
              AllOf(HasSubstr("no.model"), HasSubstr("No such file")));
  const std::string text = write("text.model", "this is no model");
  EXPECT_THAT(error_of([&] { make_tokenizer("sentencepiece:" + text); }),
              AllOf(HasSubstr("text.model"), HasSubstr("not a SentencePiece model")));
  EXPECT_THAT(error_of([] { make_stored_tokenizer("other", "", "tokens.h5"); }),
              AllOf(HasSubstr("tokens.h5"), HasSubstr("other")));
}

TEST_F(TokenizerTest, TrainingIsDeterministicAndChecksItsOptions) {
  TokenizerTrainingOptions training;
  training.inputs = {write("a.txt", words(30'000, 1))};
  training.show_progress = false;
  training.vocab_size = 400;
  for (const char* type : {"bpe", "unigram"}) {
    training.model_type = type;
    training.vocab_size = training.model_type == "bpe" ? 400 : 310;
    training.max_sentences = 100;  // sampled
    training.output = path(fmt::format("{}-1.model", type));
    const TokenizerTrainingReport report = train_tokenizer(training);
    EXPECT_EQ(report.vocab_size, training.vocab_size);
    EXPECT_EQ(report.num_bytes, static_cast<int64_t>(std::filesystem::file_size(training.inputs[0])));
    training.output = path(fmt::format("{}-2.model", type));
    train_tokenizer(training);
    EXPECT_EQ(io::read_file(path(fmt::format("{}-1.model", type))),
              io::read_file(path(fmt::format("{}-2.model", type))));
  }
  EXPECT_THAT(error_of([&] { train_tokenizer(training); }), AllOf(HasSubstr("2.model"), HasSubstr("--overwrite")));
  training.overwrite = true;
  train_tokenizer(training);
  const auto failing = [&](auto change) {
    TokenizerTrainingOptions wrong = training;
    wrong.output = path("wrong.model");
    change(wrong);
    const std::string message = error_of([&] { train_tokenizer(wrong); });
    EXPECT_FALSE(std::filesystem::exists(path("wrong.model")));
    return message;
  };
  EXPECT_THAT(failing([](auto& o) { o.model_type = "word"; }), AllOf(HasSubstr("word"), HasSubstr("unigram")));
  EXPECT_THAT(failing([](auto& o) { o.vocab_size = 100; }), AllOf(HasSubstr("100"), HasSubstr("260")));
  EXPECT_THAT(failing([](auto& o) { o.vocab_size = 50'000; }),
              AllOf(HasSubstr("too small"), HasSubstr("--vocab-size")));
  EXPECT_THAT(failing([](auto& o) { o.vocab_size = 262; }), AllOf(HasSubstr("262"), HasSubstr("expected at least")));
  EXPECT_THAT(failing([&](auto& o) { o.inputs = {write("empty.txt", "\n\n")}; }), HasSubstr("no text"));
  EXPECT_THAT(failing([](auto& o) { o.inputs = {}; }), HasSubstr("no input"));
  EXPECT_THAT(failing([](auto& o) { o.max_sentences = -1; }), HasSubstr("-1"));
  EXPECT_THAT(failing([&](auto& o) { o.output = folder_.string(); }), HasSubstr("folder"));
  EXPECT_THAT(failing([&](auto& o) { o.inputs = {path("missing.txt")}; }), HasSubstr("missing.txt: no such file"));
}

TEST_F(TokenizerTest, TrainingAcceptsVeryLongLinesAndTabs) {
  TokenizerTrainingOptions training;
  std::string text = words(40'000, 2);
  std::replace(text.begin(), text.end(), '\n', '\t');
  training.inputs = {write("a.txt", text + std::string(20'000, 'z'))};
  training.output = path("long.model");
  training.vocab_size = 350;
  training.show_progress = false;
  train_tokenizer(training);
  const auto tokenizer = make_tokenizer("sentencepiece:" + training.output);
  EXPECT_EQ(tokenizer->decode(encode(*tokenizer, text)), text);
  EXPECT_LT(encode(*tokenizer, text).size(), text.size() / 2) << "the long line was dropped";
}

}  // namespace
}  // namespace lamina
