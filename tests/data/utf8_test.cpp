#include "data/utf8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace lamina {
namespace {

std::string repaired_in_blocks(std::string_view text, size_t block, int64_t& num_replaced) {
  std::string result;
  const auto out = [&](std::string_view part) {
    EXPECT_EQ(valid_utf8(part), part.size());
    result += part;
  };
  Utf8Filter filter([&](std::string_view, int64_t) { ++num_replaced; });
  for (size_t at = 0; at < text.size(); at += block) filter.feed(text.substr(at, block), out);
  filter.finish(out);
  return result;
}

// Results of Python's bytes.decode("utf-8", "replace"); r is U+FFFD.
TEST(Utf8Test, FaultsAreReplacedAsPythonDoes) {
  const std::string r = "\xef\xbf\xbd";
  const std::vector<std::tuple<std::string, std::string, int64_t>> cases{
      {"a\x80z", "a" + r + "z", 1},
      {"\xe2\x9c", r, 1},
      {"\xe2\x9cx", r + "x", 1},
      {"\xf0\x9f\x98x\xff", r + "x" + r, 2},
      {"\xed\xa0\x80", r + r + r, 3},          // a surrogate
      {"\xc0\xaf", r + r, 2},                  // a slash, longer than needed
      {"\xf4\x90\x80\x80", r + r + r + r, 4},  // behind U+10FFFF
      {"\xf0\x80\x80\x80", r + r + r + r, 4},
      {"\xe9t\xe9", r + "t" + r, 2},  // Latin-1
      {"\xf8\x88\x80\x80\x80", r + r + r + r + r, 5},
      {"plain é 你 \xf4\x8f\xbf\xbf \xef\xbf\xbf \xed\x9f\xbf \xee\x80\x80 \xc2\x80 \xe0\xa0\x80 \xf0\x90\x80\x80",
       "plain é 你 \xf4\x8f\xbf\xbf \xef\xbf\xbf \xed\x9f\xbf \xee\x80\x80 \xc2\x80 \xe0\xa0\x80 \xf0\x90\x80\x80", 0},
      {std::string("a\0b", 3), "a" + r + "b", 1},  // NUL, which Python keeps
  };
  for (const auto& [text, expected, count] : cases) {
    int64_t found = 0;
    EXPECT_EQ(repair_utf8(text, found), expected);
    EXPECT_EQ(found, count) << expected;
    EXPECT_EQ(valid_utf8(text) == text.size(), count == 0);
    for (size_t block : {1, 2, 3}) {
      found = 0;
      EXPECT_EQ(repaired_in_blocks(text, block, found), expected) << block;
      EXPECT_EQ(found, count);
    }
  }
}

TEST(Utf8Test, OffsetsAreOfTheFirstByte) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    std::string text;
    while (text.size() < 100 + random() % 200)
      text += std::vector<const char*>{"a", "é", "你", "\U0001F600", "\n"}[random() % 5];
    const size_t at = text.size();
    text += std::vector<std::string>{"\xff", std::string(1, '\0'), "\xed\xa0\x80", "\xe2\x28"}[random() % 4] +
            "rest of it, plain";
    EXPECT_EQ(valid_utf8(text), at);
    int64_t found = -1;
    Utf8Filter filter([&](std::string_view, int64_t offset) { found = found < 0 ? offset : found; });
    const size_t block = 1 + random() % 40;
    for (size_t begin = 0; begin < text.size(); begin += block)
      filter.feed(std::string_view(text).substr(begin, block), [](std::string_view) {});
    EXPECT_EQ(found, static_cast<int64_t>(at));
  }
  EXPECT_EQ(describe_utf8_fault("\xe9t"), "byte 0xE9");
  EXPECT_EQ(describe_utf8_fault(std::string_view("\0x", 2)), "a NUL byte");
  EXPECT_EQ(describe_utf8_fault("\xe2\x9c"), "half a character");
}

}  // namespace
}  // namespace lamina
