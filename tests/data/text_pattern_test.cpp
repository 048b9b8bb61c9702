// Patterns match what Oniguruma and Rust's fancy-regex match; the expected spans are those that `tokenizers` 0.23.3 (Split) and `tiktoken`
// 0.14.0 gave.
#include "data/text_pattern.h"

#include "tests/data/support.h"

namespace lamina {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

using TextPatternTest = DataTest;

std::vector<std::string> matches(const char* pattern, std::string_view text,
                                 PatternDialect dialect = PatternDialect::oniguruma) {
  const TextPattern compiled(pattern, dialect, "x");
  PatternScratch scratch;
  std::vector<std::string> found;
  TextSpan span;
  for (size_t from = 0; from < text.size() && compiled.find(text, from, scratch, span);
       from = std::max(span.end, from + 1))
    found.emplace_back(text.substr(span.begin, span.end - span.begin));
  return found;
}

constexpr PatternDialect rust = PatternDialect::rust;

TEST_F(TextPatternTest, WhiteSpaceIsUnicodesAndNothingElse) {
  EXPECT_THAT(matches("\\s+", "a\xc2\x85\xe2\x80\xa8\xe3\x80\x80z"), ElementsAre("\xc2\x85\xe2\x80\xa8\xe3\x80\x80"));
  EXPECT_THAT(matches("\\s", "\xe1\xa0\x8e\xe2\x80\x8b"), ElementsAre()) << "U+180E and U+200B";
  EXPECT_THAT(matches("[^\\S]", "a b"), ElementsAre(" "));
  EXPECT_THAT(matches("\\S+",
                      "ab\xc2\xa0"
                      "c"),
              ElementsAre("ab", "c"));
}

TEST_F(TextPatternTest, RepetitionsOfRepetitions) {
  // With a + behind it {1,3} repeats as a whole for Oniguruma; for Rust it doesn't give back.
  EXPECT_THAT(matches("[0-9]{1,3}+", "1234567"), ElementsAre("1234567"));
  EXPECT_THAT(matches("[0-9]{1,3}+", "1234567", rust), ElementsAre("123", "456", "7"));
  EXPECT_THAT(matches("a?+a", "aa", rust), ElementsAre("aa"));
  EXPECT_THAT(matches("a++a", "aaa"), ElementsAre());
  EXPECT_THAT(matches("a{,2}b", "aaab"), ElementsAre("aab"));
}

TEST_F(TextPatternTest, TheDollarEndsALineOrTheText) {
  EXPECT_THAT(matches("\\s+$", "a  \nb "), ElementsAre("  ", " "));
  EXPECT_THAT(matches("\\s+$", "a  \nb ", rust), ElementsAre(" "));
  EXPECT_THAT(matches("\\s+$", "b \n", rust), ElementsAre(" \n"));
}

TEST_F(TextPatternTest, ScriptsAndClassesWithinClasses) {
  // U+3001 is used with Han and others: no letter of that script itself.
  EXPECT_THAT(matches("[\\p{Han}]+", "a\xe4\xbd\xa0\xe3\x80\x81\xe5\xa5\xbd"),
              ElementsAre("\xe4\xbd\xa0", "\xe5\xa5\xbd"));
  for (const PatternDialect dialect : {PatternDialect::oniguruma, rust}) {
    EXPECT_THAT(matches("[\\p{L}&&[^\\p{Han}]]+",
                        "ab\xe4\xbd\xa0"
                        "c",
                        dialect),
                ElementsAre("ab", "c"));
    EXPECT_THAT(matches("[^\\p{L}&&[^\\p{Han}]]+",
                        "ab\xe4\xbd\xa0"
                        "1c",
                        dialect),
                ElementsAre("\xe4\xbd\xa0"
                            "1"));
    EXPECT_THAT(matches("[a[0-9]]+", "a1b2", dialect), ElementsAre("a1", "2"));
  }
  EXPECT_THAT(matches("[a-c&&b-z&&[^c]]+", "abcd"), ElementsAre("b"));
  EXPECT_THAT(matches("[+\\-*\\]]+", "a-]b+"), ElementsAre("-]", "+"));
  EXPECT_THAT(matches("\\p{^L}+", "ab12"), ElementsAre("12"));
}

TEST_F(TextPatternTest, CaseWhereItIsIgnored) {
  EXPECT_THAT(matches("(?i:'s|'ll)", "'S 'lL '\xc5\xbf"), ElementsAre("'S", "'lL", "'\xc5\xbf")) << "the long s";
  EXPECT_THAT(matches("(?i:a)b", "Ab aB"), ElementsAre("Ab"));
}

TEST_F(TextPatternTest, EscapesAndLiterals) {
  EXPECT_THAT(matches("\\x41\\u00e9\\x{4f60}", "A\xc3\xa9\xe4\xbd\xa0"), ElementsAre("A\xc3\xa9\xe4\xbd\xa0"));
  EXPECT_THAT(matches("a.c", "a\nc a\rc"), ElementsAre("a\rc"));
  EXPECT_THAT(matches("#/ \\#", "#/ #"), ElementsAre("#/ #"));
  PatternScratch scratch;
  TextSpan span;
  ASSERT_TRUE(TextPattern::literal("a.*\xc3\xa9\\", "x").find("aXa.*\xc3\xa9\\", 0, scratch, span));
  EXPECT_EQ(span, (TextSpan{2, 8}));
}

TEST_F(TextPatternTest, WhatHasNoEqualIsRefused) {
  for (const char* pattern :
       {"^a",     "\\bfoo",        "(?i)a",   "(?<name>a)",    "(?P<n>a)",     "[[:alpha:]]", "\\h",   "\\R",   "\\X",
        "(a)\\1", "a**",           "(?i:ss)", "(?i:\xc3\xa9)", "(?i:\\p{Lu})", "[",           "[]",    "[^]",   "(",
        ")",      "a|*",           "\\",      "\\p{",          "\\p{123}",     "\\x{110000}", "\\u12", "[\\b]", "a{2}?",
        "(?#c)",  "\\p{Nonsense}", "[b-a]",   "(?x: a)",       "[a&&]",        "\\K"})
    EXPECT_THAT(error_of([&] { TextPattern(pattern, PatternDialect::oniguruma, "file: key"); }),
                AllOf(HasSubstr("file: key: pattern "), testing::Not(HasSubstr("\n"))))
        << pattern;
  EXPECT_THAT(error_of([&] { TextPattern("[a--b]", rust, "f"); }), HasSubstr("set operation"));
  EXPECT_THAT(error_of([&] { TextPattern(std::string(100, '(') + std::string(100, ')'), rust, "f"); }),
              HasSubstr("too deep"));
}

TEST_F(TextPatternTest, LongRunsNeedNoStack) {
  const std::string text(3'000'000, 'A');
  const auto found = matches("[\\p{L}&&[^\\p{Han}]]*[\\p{Lu}&&[^\\p{Han}]]+|.", text);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].size(), text.size());
}

}  // namespace
}  // namespace lamina
