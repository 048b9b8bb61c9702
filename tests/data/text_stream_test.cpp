#include "data/text_stream.h"

#include "tests/data/support.h"

namespace lamina {
namespace {

using TextStreamTest = DataTest;

struct Pieces {
  std::string all;
  bool each_is_whole = true;
};

Pieces pieces_of(const Tokenizer& tokenizer, std::span<const int32_t> tokens, size_t num_before = 0) {
  TextStream stream(tokenizer, tokens.first(num_before));
  Pieces out;
  const auto add = [&](const std::string& piece) {
    out.all += piece;
    out.each_is_whole = out.each_is_whole && valid_utf8(piece) == piece.size();
  };
  for (const int32_t token : tokens.subspan(num_before)) add(stream.add(token));
  add(stream.finish());
  return out;
}

constexpr const char* text = "caf\xC3\xA9 \xE4\xB8\x96\xE7\x95\x8C. \xF0\x9F\x98\x80  two  spaces\n\xE2\x9C\x93 end";

TEST_F(TextStreamTest, CharactersOfSeveralTokensComeWhole) {
  for (const auto& tokenizer :
       {make_tokenizer("bytes"), make_tokenizer("sentencepiece:" + train_model("a.model", "bpe")),
        make_tokenizer("sentencepiece:" + train_model("b.model", "unigram"))}) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 20; ++i) tokenizer->encode(text, tokens);  // longer than what is decoded together
    const Pieces found = pieces_of(*tokenizer, tokens);
    EXPECT_TRUE(found.each_is_whole) << tokenizer->name();
    EXPECT_EQ(found.all, tokenizer->decode(tokens)) << tokenizer->name();
    EXPECT_GT(tokens.size(), 20 * 10u);
  }
}

TEST_F(TextStreamTest, GoesOnFromWhatCameBefore) {
  const auto tokenizer = make_tokenizer("sentencepiece:" + train_model());
  std::vector<int32_t> tokens = {tokenizer->end_of_document()};
  tokenizer->encode("the moon", tokens);
  const size_t before = tokens.size();
  tokenizer->encode(" and the sea", tokens);
  EXPECT_EQ(pieces_of(*tokenizer, tokens, before).all, tokenizer->decode(tokens).substr(8));
}

// A character is given with its last byte, none of it before.
TEST_F(TextStreamTest, NothingOfACharacterComesEarly) {
  const auto tokenizer = make_tokenizer("bytes");
  TextStream stream(*tokenizer);
  EXPECT_EQ(stream.add(0xF0), "");
  EXPECT_EQ(stream.add(0x9F), "");
  EXPECT_EQ(stream.add(0x98), "");
  EXPECT_EQ(stream.add(0x80), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.add('a'), "a");
  EXPECT_EQ(stream.add(0xC3), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

TEST_F(TextStreamTest, BytesThatAreNoCharacterBecomeReplacements) {
  const std::string r = "\xEF\xBF\xBD";
  const auto tokenizer = make_tokenizer("bytes");
  const std::vector<int32_t> tokens = {0x80, 'a', 0xE4, 0xE4, 'b', 0xFF};
  EXPECT_EQ(pieces_of(*tokenizer, tokens).all, r + "a" + r + r + "b" + r);
}

}  // namespace
}  // namespace lamina
