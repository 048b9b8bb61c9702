// Which tokens are scored: as EleutherAI's lm-eval cuts a context and its continuation.
#include "evaluation/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace lamina::evaluation {
namespace {

using ::testing::ElementsAre;

std::string scored_text(const Tokenizer& tokenizer, const Request& request) {
  std::string text;
  for (size_t i = request.first; i < request.tokens.size(); ++i)
    text += tokenizer.text_of(request.tokens[i], request.tokens[i - 1]);
  return text;
}

class RequestTest : public ::testing::Test {
 protected:
  std::unique_ptr<Tokenizer> bytes_ = make_tokenizer("bytes");
};

TEST_F(RequestTest, SpacesAtTheContextsEndBelongToTheContinuation) {
  const Request plain = continuation_request(*bytes_, "ab", " c");
  EXPECT_THAT(plain.tokens, ElementsAre(256, 'a', 'b', ' ', 'c'));
  EXPECT_EQ(plain.first, 3);
  const Request moved = continuation_request(*bytes_, "ab \n", "c");
  EXPECT_THAT(moved.tokens, ElementsAre(256, 'a', 'b', ' ', '\n', 'c'));
  EXPECT_EQ(moved.first, 3);
  EXPECT_EQ(scored_text(*bytes_, moved), " \nc");
  EXPECT_EQ(num_scored_bytes(*bytes_, moved), 3);
  const Request empty = continuation_request(*bytes_, "", "c");
  EXPECT_THAT(empty.tokens, ElementsAre(256, 'c'));
  EXPECT_EQ(empty.first, 1);
  EXPECT_EQ(continuation_request(*bytes_, "  ", "c").first, 1);
}

// What Python's str.rstrip() takes away: its length in bytes.
TEST_F(RequestTest, WhiteSpaceIsPythons) {
  EXPECT_EQ(trailing_white_space("a \t\n\v\f\r\x1c\x1d\x1e\x1f"), 10);
  EXPECT_EQ(trailing_white_space("a\xc2\x85\xc2\xa0\xe1\x9a\x80\xe2\x80\x80\xe2\x80\x8a\xe2\x80\xa8\xe2\x80\xa9"), 19);
  EXPECT_EQ(trailing_white_space("a\xe2\x80\xaf\xe2\x81\x9f\xe3\x80\x80"), 9);
  EXPECT_EQ(trailing_white_space("a\xe2\x80\x8b"), 0);  // U+200B is none
  EXPECT_EQ(trailing_white_space("\xc3\xa0"), 0);       // ends in a byte of U+00A0
  EXPECT_EQ(trailing_white_space("a\n b"), 0);
  EXPECT_EQ(trailing_white_space("   "), 3);
  EXPECT_EQ(trailing_white_space(""), 0);
}

// Words are tokens here, and a continuation may change the context's last one.
class WordTokenizer final : public Tokenizer {
 public:
  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    for (size_t begin = 0; begin < text.size();) {
      size_t end = text.find(' ', begin + 1);
      if (end == std::string_view::npos) end = text.size();
      tokens.push_back(static_cast<int32_t>(end - begin));
      begin = end;
    }
  }
  std::string_view text_of(int32_t token, int32_t) const override {
    return std::string_view("xxxxxxxxxxxxxxxxxxxx").substr(0, static_cast<size_t>(token));
  }
  int64_t vocab_size() const override { return 20; }
  int32_t end_of_document() const override { return 0; }
  const std::string& hash() const override { return name_; }
  const std::string& name() const override { return name_; }
  const std::string& model() const override { return name_; }
  size_t safe_cut(std::string_view text) const override { return text.size(); }

 private:
  std::string name_ = "words";
};

TEST_F(RequestTest, BothAreEncodedTogether) {
  const WordTokenizer words;
  const Request next = continuation_request(words, "one two ", "three");
  EXPECT_THAT(next.tokens, ElementsAre(0, 3, 4, 6));
  EXPECT_EQ(next.first, 3);
  // "two" grows to "twofold": as many tokens as the context had, nothing is left to score.
  const Request grown = continuation_request(words, "one two", "fold");
  EXPECT_THAT(grown.tokens, ElementsAre(0, 3, 8));
  EXPECT_EQ(grown.first, grown.tokens.size());
}

TEST_F(RequestTest, DocumentsAreScoredOnceTokenForToken) {
  const std::string text = "abcdefg";
  for (int64_t length = 1; length <= 8; ++length) {
    const std::vector<Request> requests = document_requests(*bytes_, text, length);
    EXPECT_EQ(static_cast<int64_t>(requests.size()), (7 + length - 1) / length);
    std::string scored;
    int32_t last = 256;  // the end of the document before
    for (const Request& request : requests) {
      EXPECT_LE(request.num_inputs(), length);
      EXPECT_EQ(request.first, 1);
      EXPECT_EQ(request.tokens.front(), last);
      last = request.tokens.back();
      scored += scored_text(*bytes_, request);
    }
    EXPECT_EQ(scored, text);
  }
  EXPECT_TRUE(document_requests(*bytes_, "", 4).empty());
}

TEST_F(RequestTest, LosesItsBeginning) {
  Request request{{256, 1, 2, 3, 4, 5}, 4};
  EXPECT_FALSE(cut_beginning(request, 5));
  EXPECT_TRUE(cut_beginning(request, 3));
  EXPECT_THAT(request.tokens, ElementsAre(2, 3, 4, 5));
  EXPECT_EQ(request.first, 2);
  EXPECT_TRUE(cut_beginning(request, 1));  // of what is scored, too
  EXPECT_THAT(request.tokens, ElementsAre(4, 5));
  EXPECT_EQ(request.first, 1);
}

}  // namespace
}  // namespace lamina::evaluation
