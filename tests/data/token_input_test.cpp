// Tokens of other programs, used where they lie.
#include "data/token_input.h"

#include <fstream>

#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "tests/data/support.h"

namespace lamina {
namespace {

using namespace std::string_literals;
using ::testing::AllOf;
using ::testing::HasSubstr;

class TokenInputTest : public DataTest {
 protected:
  template <class T>
  static std::string stored(const std::vector<int32_t>& tokens) {
    const std::vector<T> values(tokens.begin(), tokens.end());
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
  }

  static std::string numpy(const std::string& type, const std::string& shape, const std::string& data,
                           int version = 1) {
    std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }";
    header.append(117 - header.size(), ' ');
    header += '\n';
    const auto length = static_cast<uint32_t>(header.size());
    std::string result = "\x93NUMPY"s + static_cast<char>(version) + '\0';
    result.append(reinterpret_cast<const char*>(&length), version == 1 ? 2 : 4);
    return result + header + data;
  }

  // One sequence a document, as preprocess_data.py writes a text without splitting it into sentences.
  static std::string megatron_index(const std::vector<int32_t>& lengths, int code, int64_t token_bytes) {
    std::string result = "MMIDIDX\0\0"s;
    const auto add = [&](auto value) { result.append(reinterpret_cast<const char*>(&value), sizeof value); };
    add(uint64_t{1});
    add(static_cast<uint8_t>(code));
    add(static_cast<int64_t>(lengths.size()));
    add(static_cast<int64_t>(lengths.size()) + 1);
    for (const int32_t length : lengths) add(length);
    int64_t at = 0;
    for (const int32_t length : lengths) add(std::exchange(at, at + length * token_bytes));
    for (size_t i = 0; i <= lengths.size(); ++i) add(static_cast<int64_t>(i));
    return result;
  }

  PrepareOptions in_place(const std::string& output, const std::string& input, const std::string& type = "") const {
    PrepareOptions result = options(output, {input});
    result.in_place = true;
    result.token_type = type;
    result.overwrite = true;
    return result;
  }
  std::string refusal(const std::string& input, const std::string& type = "") const {
    const size_t before = num_entries();
    const std::string message = error_of([&] { prepare(in_place("refused", input, type)); });
    EXPECT_EQ(num_entries(), before) << message;
    return message;
  }
};

// What megatron-core 0.16.1's IndexedDatasetBuilder wrote of two documents of two sequences each.
TEST_F(TokenInputTest, AMegatronDataSetIsItsText) {
  const std::vector<std::string> texts{"The first document.", "Second, é."};
  const std::string index =
      "MMIDIDX\0\0\1\0\0\0\0\0\0\0\x08\4\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0"
      "\5\0\0\0\x0f\0\0\0\5\0\0\0\7\0\0\0"
      "\0\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x28\0\0\0\0\0\0\0\x32\0\0\0\0\0\0\0"
      "\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0"s;
  std::vector<int32_t> tokens;
  for (const std::string& text : texts) {
    make_tokenizer("bytes")->encode(text, tokens);
    tokens.push_back(256);
  }
  write("gpt.bin", stored<uint16_t>(tokens));
  write("gpt.idx", index);
  prepare(options("copied", {write("0", texts[0]), write("1", texts[1])}));
  const TokenFile copied = TokenFile::open(path("copied"));
  for (const char* name : {"gpt.bin", "gpt.idx"}) {
    const PrepareReport report = prepare(in_place("linked", path(name)));
    EXPECT_EQ(report.num_documents, 2);
    EXPECT_EQ(report.num_bytes, static_cast<int64_t>(texts[0].size() + texts[1].size()));
    const TokenFile linked = TokenFile::open(path("linked"));
    linked.verify();
    EXPECT_EQ(all_tokens(linked), tokens);
    EXPECT_EQ(linked.info().text_hash, copied.info().text_hash);
    EXPECT_EQ(linked.info().tokens_hash, copied.info().tokens_hash);
    EXPECT_EQ(linked.info().num_documents, copied.info().num_documents);
    EXPECT_EQ(linked.tokenizer_hash(), copied.tokenizer_hash());
  }
}

TEST_F(TokenInputTest, EveryFormHoldsTheSameTokensAndNoneIsCopied) {
  const std::string text = words(400'000, 3);
  std::vector<int32_t> tokens, lengths;
  for (size_t begin = 0; begin < text.size(); begin += 3000 + begin % 7000) {
    const size_t before = tokens.size();
    make_tokenizer("bytes")->encode(text.substr(begin, 3000 + begin % 7000), tokens);
    tokens.push_back(256);
    lengths.push_back(static_cast<int32_t>(tokens.size() - before));
  }
  const std::string shape = fmt::format("({},)", tokens.size());
  write("m16.bin", stored<uint16_t>(tokens));
  write("m16.idx", megatron_index(lengths, 8, 2));
  write("m32.bin", stored<int32_t>(tokens));
  write("m32.idx", megatron_index(lengths, 4, 4));
  const std::pair<std::string, std::string> inputs[] = {
      {path("m16.bin"), ""},
      {path("m32.bin"), ""},
      {write("16.npy", numpy("<u2", shape, stored<uint16_t>(tokens))), ""},
      {write("32.npy", numpy("<u4", shape, stored<uint32_t>(tokens))), ""},
      {write("i32", numpy("<i4", shape, stored<int32_t>(tokens), 2)), ""},
      {write("flat16", stored<uint16_t>(tokens)), "u16"},
      {write("flat32.bin", stored<uint32_t>(tokens)), "u32"}};
  for (const auto& [input, type] : inputs) {
    const PrepareReport report = prepare(in_place("out", input, type));
    EXPECT_EQ(report.num_documents, static_cast<int64_t>(lengths.size())) << input;
    EXPECT_EQ(report.num_tokens, static_cast<int64_t>(tokens.size()));
    const TokenFile file = TokenFile::open(path("out"));
    file.verify();
    EXPECT_TRUE(all_tokens(file) == tokens) << input;
    std::vector<int32_t> part(70'000);
    file.read(65'000, part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 65'000));
    EXPECT_LT(std::filesystem::file_size(path("out/tokens.h5")), 100'000u) << "the tokens were copied";
  }
}

TEST_F(TokenInputTest, WhatDoesNotFitIsRefused) {
  const std::vector<int32_t> tokens{104, 105, 256, 104, 256};
  const std::string data = stored<uint16_t>(tokens);
  EXPECT_THAT(refusal(write("a", stored<uint16_t>({104, 257, 256})), "u16"),
              HasSubstr("a: found token id 257 at index 1, expected ids below the tokenizer's 257"));
  EXPECT_THAT(refusal(write("a", stored<int32_t>({104, -1, 256})), "u32"), HasSubstr("at index 1"));
  EXPECT_THAT(refusal(write("a", stored<uint16_t>({104, 105})), "u16"),
              HasSubstr("a: found no end of a document among 2 tokens, expected the tokenizer's 256"));
  EXPECT_THAT(refusal(write("a", data + "x"), "u16"), HasSubstr("found 11 bytes of tokens, expected a multiple of 2"));
  EXPECT_THAT(refusal(write("a", "")), HasSubstr("--token-type"));
  EXPECT_THAT(refusal(write("a", ""), "u16"), HasSubstr("a: found no tokens"));
  EXPECT_THAT(refusal(write("a", data)),
              AllOf(HasSubstr("neither a Megatron data set nor a NumPy array"), HasSubstr("--token-type")));
  EXPECT_THAT(refusal(path("missing"), "u16"), HasSubstr("missing: found no file"));
  EXPECT_THAT(refusal(write("a", numpy("<i8", "(5,)", data))),
              HasSubstr("found a NumPy array of '<i8', expected uint8"));
  EXPECT_THAT(refusal(write("a", numpy(">u2", "(5,)", data))), HasSubstr("'>u2'"));
  EXPECT_THAT(refusal(write("a", numpy("<u2", "(5, 1)", data))), HasSubstr("expected one axis"));
  EXPECT_THAT(refusal(write("a", numpy("<u2", "(6,)", data))),
              HasSubstr("found 5 tokens, expected those of shape (6,)"));
  EXPECT_THAT(refusal(write("a", numpy("<u2", "(5,)", data).substr(0, 40))), HasSubstr("truncated"));
  EXPECT_THAT(refusal(write("a", numpy("<u2", "(5,)", data)), "u16"), HasSubstr("--token-type is for flat files"));
  write("m.bin", data);
  const auto index = [&](const std::string& content) { return refusal((write("m.idx", content), path("m.bin"))); };
  EXPECT_THAT(index(megatron_index({3, 1}, 8, 2)), HasSubstr("m.bin: found 5 tokens, expected the 4 of"));
  EXPECT_THAT(index(megatron_index({2, 3}, 8, 2)),
              HasSubstr("found 105 at index 1, where the index file has the end of a document"));
  EXPECT_THAT(index(megatron_index({5}, 8, 2)), HasSubstr("found 256 at index 2, where the index file has no end"));
  EXPECT_THAT(index(megatron_index({3, 2}, 5, 2)), HasSubstr("Megatron's type 5"));
  EXPECT_THAT(index(megatron_index({3, 2}, 8, 4)), HasSubstr("found sequence 1 at byte 12, expected it at 6"));
  EXPECT_THAT(index(megatron_index({3, 2}, 8, 2).substr(0, 60)), HasSubstr("m.idx"));
  EXPECT_THAT(index("no index at all"), HasSubstr("found no Megatron index"));
}

// A folder of files is the one file that they make when they are put together.
TEST_F(TokenInputTest, AFolderOfFilesIsOneSource) {
  const std::string text = words(500'000, 4);
  std::vector<int32_t> tokens;
  for (size_t begin = 0; begin < text.size(); begin += 10'000) {
    make_tokenizer("bytes")->encode(text.substr(begin, 10'000), tokens);
    tokens.push_back(256);
  }
  write("whole", stored<uint16_t>(tokens));
  // Cut at places that are neither those of checksums nor ends of documents.
  std::filesystem::create_directories(path("shards/other"));
  write("shards/README.md", "what this is");
  std::vector<std::string> names;
  const size_t step = tokens.size() / 299;
  for (size_t begin = 0, i = 0; begin < tokens.size(); begin += step, ++i) {
    const std::vector<int32_t> part(
        tokens.begin() + static_cast<std::ptrdiff_t>(begin),
        tokens.begin() + static_cast<std::ptrdiff_t>(std::min(begin + step, tokens.size())));
    const std::string data = stored<uint16_t>(part);
    if (i % 2 == 0)
      names.push_back(write(fmt::format("shards/{:03}.npy", i), numpy("<u2", fmt::format("({},)", part.size()), data)));
    else
      names.push_back(write(fmt::format("shards/{:03}.bin", i), data));
  }
  ASSERT_EQ(names.size(), 300u);
  EXPECT_THAT(refusal(path("shards"), "u16"), HasSubstr("000.npy: found a NumPy array, which tells its type"));
  for (std::string& name : names) {
    if (!name.ends_with(".bin")) continue;
    const std::string data = io::read_file(name);
    std::filesystem::remove(name);
    name.replace(name.size() - 3, 3, "npy");
    std::ofstream(name, std::ios::binary) << numpy("<u2", fmt::format("({},)", data.size() / 2), data);
  }
  const PrepareReport report = prepare(in_place("linked", path("shards")));
  EXPECT_EQ(report.files_in_place, names);
  EXPECT_THAT(report.passed_over, ::testing::ElementsAre(path("shards/README.md"), path("shards/other/")));
  const PrepareReport whole = prepare(in_place("one", path("whole"), "u16"));
  EXPECT_EQ(report.num_documents, whole.num_documents);
  EXPECT_EQ(report.num_bytes, whole.num_bytes);
  const TokenFile linked = TokenFile::open(path("linked")), one = TokenFile::open(path("one"));
  linked.verify();
  EXPECT_TRUE(all_tokens(linked) == tokens);
  EXPECT_EQ(linked.info().tokens_hash, one.info().tokens_hash);
  EXPECT_EQ(linked.info().text_hash, one.info().text_hash);
  std::vector<int32_t> part(70'000);
  linked.read(300'001, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 300'001));
  const std::string before = io::read_file(path("linked/tokens.h5"));
  prepare(in_place("linked", path("shards/")));
  EXPECT_TRUE(io::read_file(path("linked/tokens.h5")) == before);
  // What was mapped is read on, whatever now has the name.
  std::filesystem::remove(names.back());
  write("shards/298.npy.new", "another");
  std::filesystem::rename(path("shards/298.npy.new"), names[298]);
  linked.read(linked.num_tokens() - 70'000, part);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.end() - 70'000));
}

TEST_F(TokenInputTest, SeveralFilesThatDoNotFitAreRefused) {
  const std::vector<int32_t> tokens{104, 105, 256, 104, 256};
  const std::string data = stored<uint16_t>(tokens);
  std::filesystem::create_directories(path("d"));
  const auto folder = [&](const std::string& type) { return refusal(path("d"), type); };
  EXPECT_THAT(folder("u16"), HasSubstr("d: found no token file in this folder, expected .bin (with its .idx) or .npy"));
  write("d/1.bin", data);
  EXPECT_THAT(folder(""), AllOf(HasSubstr("d/1.bin: found neither"), HasSubstr("--token-type u8, u16 or u32")));
  write("d/2.bin", "");
  EXPECT_THAT(folder("u16"), HasSubstr("d/2.bin: found no tokens"));
  write("d/2.bin", stored<uint16_t>({104, 300, 256}));
  EXPECT_THAT(folder("u16"),
              HasSubstr("d/2.bin: found token id 300 at index 1, expected ids below the tokenizer's 257"));
  write("d/1.npy", numpy("<u2", "(5,)", data));
  write("d/2.npy", numpy("<u4", "(5,)", stored<uint32_t>(tokens)));
  std::filesystem::remove(path("d/1.bin"));
  std::filesystem::remove(path("d/2.bin"));
  EXPECT_THAT(folder(""), AllOf(HasSubstr("d/2.npy: found tokens of 4 bytes, expected 2 as in"), HasSubstr("d/1.npy")));
  PrepareOptions twice = in_place("out", path("d/1.npy"));
  twice.inputs.push_back(path("d/../d/1.npy"));
  EXPECT_THAT(error_of([&] { prepare(twice); }), HasSubstr("1.npy: named twice"));
  // Both files of a data set, as a shell's pattern names them.
  write("m.bin", data);
  write("m.idx", megatron_index({3, 2}, 8, 2));
  PrepareOptions both = in_place("out", path("m.bin"));
  both.inputs.push_back(path("m.idx"));
  EXPECT_EQ(prepare(both).num_tokens, 5);
  std::filesystem::remove(path("m.bin"));
  EXPECT_THAT(refusal(path("m.idx")), HasSubstr("m.bin: not found, expected the tokens of"));
}

TEST_F(TokenInputTest, AFileThatChangedIsNoticed) {
  const std::string data = stored<uint16_t>({104, 105, 256, 104, 256});
  const auto opening = [&] { return error_of([&] { (void)TokenFile::open(path("out")); }); };
  prepare(in_place("out", write("flat", data), "u16"));
  write("flat", data + data);
  EXPECT_THAT(opening(), HasSubstr("flat: found 20 bytes, expected the 10 that"));
  write("flat", stored<uint16_t>({104, 106, 256, 104, 256}));
  EXPECT_THAT(opening(), AllOf(HasSubstr("flat: tokens [0, 5) have checksum"), HasSubstr("damaged")));
  std::filesystem::remove(path("flat"));
  EXPECT_THAT(opening(), HasSubstr("flat: not found, expected the tokens of"));
}

// Neither the first piece nor the last, which opening compares.
TEST_F(TokenInputTest, AChangeInTheMiddleIsNoticedBeforeItIsUsed) {
  std::vector<int32_t> tokens(4 * tokens_per_piece, 104);
  tokens.back() = 256;
  write("flat", stored<uint16_t>(tokens));
  prepare(in_place("out", path("flat"), "u16"));
  const auto change = [&](int64_t token, char value) {
    std::fstream file(path("flat"), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(2 * token);
    file.put(value);
  };
  std::vector<int32_t> read(10);
  const TokenFile running = TokenFile::open(path("out"));
  running.read(tokens_per_piece, read);
  // While it is open: the same place again, which was right before.
  change(tokens_per_piece + 60'000, 'x');
  const auto wrong =
      AllOf(HasSubstr("flat: tokens [65536, 131072) have checksum"), HasSubstr("changed since it was prepared"));
  EXPECT_THAT(error_of([&] { running.read(tokens_per_piece, read); }), wrong);
  // Between two starts.
  const TokenFile started = TokenFile::open(path("out"));
  EXPECT_NO_THROW(started.read(2 * tokens_per_piece, read));
  EXPECT_THAT(error_of([&] { started.read(2 * tokens_per_piece - 1, read); }), wrong);
  // What only looks changed is none.
  change(tokens_per_piece + 60'000, 104);
  EXPECT_NO_THROW(running.read(tokens_per_piece, read));
  EXPECT_NO_THROW(started.read(2 * tokens_per_piece - 1, read));
}

// In the middle of a page, behind which a map has zeros, and at its end, behind which it has none.
TEST_F(TokenInputTest, AFileThatIsCutWhileItIsReadIsNamedWithItsToken) {
  std::vector<int32_t> tokens(4 * tokens_per_piece, 104);
  tokens.back() = 256;
  const std::string data = stored<uint16_t>(tokens);
  prepare(in_place("out", write("flat", data), "u16"));
  std::vector<int32_t> read(10);
  for (const int64_t end : {3 * tokens_per_piece + 5, 3 * tokens_per_piece}) {
    const TokenFile file = TokenFile::open(path("out"));
    EXPECT_NO_THROW(file.read(3 * tokens_per_piece, read));
    std::filesystem::resize_file(path("flat"), static_cast<size_t>(2 * end));
    EXPECT_THAT(error_of([&] { file.read(3 * tokens_per_piece, read); }),
                HasSubstr(fmt::format("flat: the file ends inside its tokens at token {}; it was truncated", end)));
    EXPECT_NO_THROW(file.read(2 * tokens_per_piece, read));
    write("flat", data);
  }
}

// A folder that a program without /files wrote.
TEST_F(TokenInputTest, OneFileDescribedByAttributesIsRead) {
  const std::vector<int32_t> tokens{104, 105, 256, 104, 256};
  write("flat", "12" + stored<uint16_t>(tokens));
  write("tokens", stored<uint16_t>(tokens));
  prepare(in_place("out", path("tokens"), "u16"));
  const io::Hdf5File now = io::Hdf5File::open(path("out/tokens.h5"));
  std::filesystem::create_directories(path("old"));
  io::Hdf5File old = io::Hdf5File::create(path("old/tokens.h5"));
  for (const char* name : {"format", "tokenizer", "tokenizer_hash", "sources", "text_hash", "tokens_hash"})
    old.write_attribute("/", name, now.read_string("/", name));
  for (const char* name :
       {"format_version", "vocab_size", "end_of_document", "num_tokens", "num_documents", "num_bytes", "token_bytes"})
    old.write_attribute("/", name, now.read_int("/", name));
  for (const char* name : {"/checksums", "/document_starts"}) {
    const int64_t count = now.info(name).num_elements();
    std::vector<uint64_t> values(static_cast<size_t>(count));
    now.read(name, io::ElementType::u64, 0, count, values.data());
    old.write(name, io::ElementType::u64, std::vector<int64_t>{count}, values.data());
  }
  old.write_attribute("/", "tokens_file", path("flat"));
  old.write_attribute("/", "tokens_file_bytes", int64_t{12});
  old.write_attribute("/", "tokens_offset", int64_t{2});
  old.close();
  const TokenFile file = TokenFile::open(path("old"));
  EXPECT_EQ(all_tokens(file), tokens);
  file.verify();
}

}  // namespace
}  // namespace lamina
