#include "data/text_input.h"

#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "tests/data/support.h"
#include "tests/support/compressed.h"

namespace lamina {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using Documents = std::vector<std::string>;

TextFormat told(const std::string& format) {
  TextFormat result;
  result.format = format;
  return result;
}
TextFormat with_key(const std::string& key) {
  TextFormat result;
  result.text_key = key;
  return result;
}
TextFormat lenient(bool replaces, bool skips) {
  TextFormat result;
  result.replace_invalid_utf8 = replaces;
  result.skip_bad_records = skips;
  return result;
}

class TextInputTest : public DataTest {
 protected:
  Documents documents(const std::string& file, const TextFormat& format = {}) {
    Documents result;
    std::string open;
    const DocumentSink sink{.text = [&](std::string_view text) { open += text; },
                            .end_document = [&] { result.push_back(std::exchange(open, {})); },
                            .progress = {}};
    counts_ = read_documents(file, format, sink);
    EXPECT_EQ(open, "");
    return result;
  }
  Documents of(const std::string& name, const std::string& content, const TextFormat& format = {}) {
    return documents(write(name, content), format);
  }
  std::string refusal(const std::string& name, const std::string& content, const TextFormat& format = {}) {
    return error_of([&] { (void)of(name, content, format); });
  }

  TextCounts counts_;
};

TEST_F(TextInputTest, JsonIsFoundByItsFirstRecord) {
  const std::string lines =
      "{\"text\": \"a\"}\n{\"id\": [1, {\"text\": 2}], \"text\": \"b\\n\\u00e9\"}\r\n\n{\"text\": \"\"}";
  const std::string array =
      "\n [{\"text\": \"a\"},\n{\"id\": \"],[{\\\\\\\"\", \"text\": \"b\\n\\u00e9\"} , {\"text\":\"\"}\n]\n";
  for (const char* name : {"f", "f.txt", "f.json", "f.jsonl", "f.ndjson", "f.JSONL", "f.json.gz", "f.zst", "f.parquet"})
    for (const std::string& json : {lines, array})
      for (const std::string& content : {json, gzip(json), zstd(json), xz(json), bzip2(json), "\xef\xbb\xbf" + json})
        EXPECT_THAT(of(name, content), ElementsAre("a", "b\né", "")) << name << " " << content;
  EXPECT_EQ(counts_.num_skipped + counts_.num_replaced, 0);
}

TEST_F(TextInputTest, WhatOnlyLooksLikeJsonIsText) {
  for (const std::string& text :
       {std::string("[1] A footnote\n"), std::string("[Illustration: a ship]\n"), std::string("{\\bf bold} of TeX"),
        std::string("{ int x = 0; }\n"), std::string("[link](there)"), std::string("[\"A quote\" he said]"),
        std::string("\"text\": \"a\"\n"), std::string("PAR1 is a word"), std::string("RIFF and ORC"),
        std::string("{{template}}"), std::string("[[wiki]]"), std::string("the first line\n{\"text\": \"a\"}\n"),
        std::string("{\n  'text': 'a'\n}")})
    EXPECT_THAT(of("f.txt", text), ElementsAre(text));
  EXPECT_THAT(of("f.txt", "\xef\xbb\xbfmarked"), ElementsAre("marked"));
  EXPECT_THAT(of("f.txt", "{\"text\": \"a\"}\n", told("text")), ElementsAre("{\"text\": \"a\"}\n")) << "told";
  EXPECT_THAT(of("f.json", "plain", told("text")), ElementsAre("plain"));
  TextFormat separated;
  separated.document_separator = "--";
  EXPECT_THAT(of("f.txt", "a--b--", separated), ElementsAre("a", "b", ""));
}

TEST_F(TextInputTest, LargeArraysAndRecordsAcrossBlocks) {
  nlohmann::json array = nlohmann::json::array();
  Documents expected;
  for (size_t i = 0; i < 300; ++i) {
    expected.push_back(words(i * i, static_cast<unsigned>(i)));
    array.push_back({{"page", {{"body", expected.back()}, {"tags", {"]", "{", "\""}}}}});
  }
  const TextFormat format = with_key("page.body");
  EXPECT_TRUE(of("f.json", array.dump(), format) == expected);
  EXPECT_TRUE(of("f.json", array.dump(2), format) == expected);
  std::string lines;
  for (const nlohmann::json& record : array) lines += record.dump() + "\n";
  EXPECT_TRUE(of("f.jsonl", lines, format) == expected);
}

TEST_F(TextInputTest, DottedKeys) {
  EXPECT_THAT(of("f", "{\"a\": {\"b\": \"x\"}}\n{\"a.b\": \"y\", \"a\": {\"b\": \"x\"}}", with_key("a.b")),
              ElementsAre("x", "y"));
  EXPECT_THAT(refusal("f", "{\"a\": {\"c\": 1}}", with_key("a.b")), HasSubstr("f:1: no key \"a.b\"; found \"c\""));
  EXPECT_THAT(refusal("f", "{\"a\": [1]}", with_key("a.b")),
              HasSubstr("f:1: found array under \"a\", expected an object"));
  EXPECT_THAT(refusal("f", "{\"c\": 1}", with_key("a.b")), HasSubstr("f:1: no key \"a\"; found \"c\""));
  EXPECT_THAT(refusal("f", "{\"a\": {\"b\": {}}}", with_key("a.b")),
              HasSubstr("found object under \"a.b\", expected a string"));
}

TEST_F(TextInputTest, BadRecordsAreRefusedOrCounted) {
  const std::string bad[] = {
      "{\"text\": null}",        "{\"body\": \"x\"}",       "[1]",   "{\"text\": \"cut",       "{\"text\": \"\xe9\"}",
      "{\"text\": \"\\u0000\"}", "{\"text\": \"\\ud800\"}", "\"x\"", std::string(100'000, '[')};
  const TextFormat skipping = lenient(false, true);
  for (const std::string& record : bad) {
    const std::string lines = "{\"text\": \"a\"}\n" + record + "\n{\"text\": \"b\"}\n" + record + "\n";
    EXPECT_THAT(refusal("f.jsonl", lines), HasSubstr("f.jsonl:2: "));
    EXPECT_THAT(of("f.jsonl", lines, skipping), ElementsAre("a", "b"));
    EXPECT_EQ(counts_.num_skipped, 2) << record.substr(0, 20);
    EXPECT_THAT(counts_.first_skipped, HasSubstr("f.jsonl:2: "));
    if (record.ends_with("cut") || record.ends_with("[[")) continue;  // where an array goes on, nobody knows
    const std::string array = "[{\"text\": \"a\"},\n" + record + ", {\"text\": \"b\"}]";
    EXPECT_THAT(refusal("f.json", array), HasSubstr("f.json:2: record 2: "));
    EXPECT_THAT(of("f.json", array, skipping), ElementsAre("a", "b"));
    EXPECT_EQ(counts_.num_skipped, 1);
  }
  for (const char* array :
       {"[{\"text\": \"a\"}", "[{\"text\": \"a\"},", "[{\"text\": \"a\"}] x", "[{\"text\": \"a\"},,{\"text\": \"b\"}]",
        "[{\"text\": \"a\"},]", "[{\"text\": \"a\"}}]", "[{\"text\": \"a\"}][]", "[{\"text\": \"a"})
    EXPECT_THAT(refusal("f.json", array, skipping), AllOf(HasSubstr("f.json"), Not(HasSubstr("record 1:")))) << array;
}

TEST_F(TextInputTest, InvalidUtf8IsRefusedOrReplaced) {
  const std::string r = "\xef\xbf\xbd";
  const TextFormat replacing = lenient(true, false);
  EXPECT_THAT(refusal("f.txt", "caf\xe9"),
              HasSubstr("f.txt: found half a character at offset 3, expected text in UTF-8"));
  EXPECT_THAT(refusal("f.txt", "caf\xe9 au lait"), HasSubstr("f.txt: found byte 0xE9 at offset 3"));
  EXPECT_THAT(refusal("f.txt.gz", gzip(words(3'000'000, 1) + std::string(1, '\0'))),
              AllOf(HasSubstr("f.txt.gz: found a NUL byte at offset 300"), HasSubstr("--invalid-utf8 replace")));
  EXPECT_THAT(of("f.txt", std::string("caf\xe9 a\0b", 8), replacing), ElementsAre("caf" + r + " a" + r + "b"));
  EXPECT_EQ(counts_.num_replaced, 2);
  EXPECT_THAT(refusal("f.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n"),
              HasSubstr("f.jsonl:2: found byte 0xFF at offset 24"));
  EXPECT_THAT(
      of("f.jsonl", "{\"text\": \"\xff\"}\n{\"text\": \"a\\u0000\\ud83d\\ude00\\ud83d \\\\ud800 \\ude00\"}", replacing),
      ElementsAre(r, "a" + r + "\U0001F600" + r + " \\ud800 " + r));
  EXPECT_EQ(counts_.num_replaced, 4);
  EXPECT_THAT(of("f.jsonl", "{\"text\": \"\xff\"}\n{\"text\": 3}\n", lenient(true, true)), ElementsAre(r));
  EXPECT_EQ(counts_.num_skipped, 1);
  EXPECT_EQ(counts_.num_replaced, 1);
}

TEST_F(TextInputTest, APipeBehavesLikeTheFileItCarries) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  const std::string lines = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
  for (const std::string& content : {lines, gzip(lines), zstd(lines), xz(lines), bzip2(lines)}) {
    std::thread writer([&] {
      std::ofstream pipe(path("pipe"), std::ios::binary);
      for (const char c : content) pipe << c << std::flush;  // in the smallest pieces
    });
    EXPECT_THAT(documents(path("pipe")), ElementsAre("a", "b"));
    writer.join();
  }
}

TEST_F(TextInputTest, InputsAreCheckedBeforeTheWork) {
  const std::string good = write("good.txt", "text");
  EXPECT_EQ(check_inputs({good, "-"}, {}), 4);
  EXPECT_THAT(error_of([&] { check_inputs({good, "-", "-"}, {}); }), HasSubstr("named twice"));
  EXPECT_THAT(error_of([&] { check_inputs({good}, told("csv")); }), AllOf(HasSubstr("csv"), HasSubstr("jsonl")));
  EXPECT_THAT(error_of([&] {
                check_inputs({good, write("x.txt", std::string("PAR1\x15\x04\x15", 7))}, {});
              }),
              HasSubstr("x.txt: found a Parquet file, expected text or JSON records"));
}

}  // namespace
}  // namespace lamina
