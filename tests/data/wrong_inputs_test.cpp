// What is no text, under every name, as it is, compressed, cut and on a pipe: an error of one line that names the file, and nothing written.
#include <sys/stat.h>

#include <csignal>
#include <thread>

#include "core/io/hdf5.h"
#include "tests/data/support.h"
#include "tests/support/compressed.h"

namespace lamina {
namespace {

using namespace std::string_literals;
using ::testing::HasSubstr;

struct Wrong {
  std::string content;
  std::string what;  // in the message
};

class WrongInputsTest : public DataTest {
 protected:
  static std::string noise(size_t size, unsigned seed) {
    std::mt19937 random(seed);
    std::string bytes;
    while (bytes.size() < size) bytes.push_back(static_cast<char>(random()));
    return bytes;
  }

  // Token ids as Megatron's .bin and flat files have them.
  static std::string token_ids(size_t count, size_t width) {
    std::mt19937 random(1);
    std::string bytes;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t id = random() % 50'000;
      bytes.append(reinterpret_cast<const char*>(&id), width);
    }
    return bytes;
  }

  std::string hdf5() const {
    {
      io::Hdf5File file = io::Hdf5File::create(path("made.h5"));
      const float value = 1;
      file.write("/x", io::ElementType::f32, std::vector<int64_t>{1}, &value);
      file.close();
    }
    std::ifstream in(path("made.h5"), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(in), {}};
    std::filesystem::remove(path("made.h5"));
    return bytes;
  }

  std::vector<Wrong> formats() const {
    std::string tar = "a.txt"s + std::string(252, '\0') + "ustar\000"s + noise(300, 1);
    return {{"PAR1\x15\x04\x15"s + noise(500, 2) + "PAR1", "a Parquet file"},
            {"ARROW1\0\0"s + noise(500, 3), "an Arrow file"},
            {"\xff\xff\xff\xff\x78\1\0\0"s + noise(500, 4), "an Arrow stream"},
            {hdf5(), "an HDF5 file"},
            {"\x93NUMPY\1\0v\0{'descr': '<u2', 'fortran_order': False, 'shape': (100,), }\n"s + token_ids(100, 2),
             "a NumPy array"},
            {"MMIDIDX\0\0\1\0\0\0\0\0\0\0\x08"s + noise(200, 5), "the index of a Megatron data set"},
            {token_ids(5000, 2), "at offset"},
            {token_ids(5000, 4), "at offset"},
            {"PK\3\4\x14\0"s + noise(300, 6), "a zip archive"},
            {tar, "a tar archive"},
            {"SQLite format 3\0"s + noise(300, 7), "an SQLite database"},
            {"\x04\x22\x4d\x18"s + noise(300, 8), "an LZ4 file"},
            {"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"s + noise(300, 9), "a PDF document"},
            {"\xff\xfet\0e\0x\0t\0"s, "text in UTF-16"},
            {"t\0e\0x\0t\0"s, "a NUL byte at offset 1"},
            {"caf\xe9 au lait, in Latin-1"s, "byte 0xE9 at offset 3"},
            {"text up to here\0"s, "a NUL byte at offset 15"},
            {noise(4000, 10), "at offset"},
            {std::string(1000, '\0'), "a NUL byte at offset 0"},
            {"{\"text\": null}\n", ":1: found null under \"text\""},
            {"{\"body\": \"a\"}\n", "no key \"text\""},
            {"{\"text\": \"a\"}\n{\"text\": \"b\n", ":2: not valid JSON"},
            {"{\"text\": \"a\"}\nno record\n", ":2: not valid JSON"},
            {"[{\"text\": \"a\"}, {\"text\": 3}]", "record 2: found number"},
            {"[{\"text\": \"a\"}, ", "the JSON array has no end"},
            {"{\n \"text\": \"a\"\n}\n", "a JSON object over several lines"},
            {"WARC/1.0\r\nWARC-Type: warcinfo\r\n", "a WARC crawl"},
            {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"},
            {"", "found no text"}};
  }

  // Nothing is left but the input itself; returns the message, which error_of found to be one line.
  std::string refusal(const std::string& name) const {
    const size_t before = num_entries();
    const std::string message = error_of([&] { prepare(options("out", {path(name)})); });
    EXPECT_EQ(num_entries(), before) << message;
    EXPECT_THAT(message, HasSubstr(name));
    return message;
  }
};

TEST_F(WrongInputsTest, AreRefusedByNameUnderEveryEnding) {
  int count = 0;
  for (const Wrong& wrong : formats())
    for (const char* ending : {".txt", ".jsonl", ".json.gz", ".parquet", ".bin", ".npy", ".zst", ""}) {
      const std::string name = "input" + std::string(ending);
      write(name, wrong.content);
      const std::string message = refusal(name);
      // Where the name promises a form, what breaks the promise may be told first.
      const bool promises =
          std::string(ending) == ".jsonl" || std::string(ending) == ".json.gz" || wrong.content.empty();
      EXPECT_THAT(message, HasSubstr(promises ? "input" : wrong.what));
      ++count;
      std::filesystem::remove(path(name));
    }
  EXPECT_GE(count, 200);
}

TEST_F(WrongInputsTest, AreRefusedInsideEveryCompression) {
  for (const Wrong& wrong : formats())
    for (const auto& compress : {gzip, zstd, xz, bzip2}) {
      write("input.gz", compress(wrong.content));
      EXPECT_THAT(refusal("input.gz"), HasSubstr(wrong.what));
    }
  for (const auto& [content, what] : {std::pair{gzip(gzip("text")), "gzip data in compressed data"},
                                      {xz(zstd("text")), "Zstandard data"},
                                      {gzip(xz("text")), "xz data"},
                                      {zstd(bzip2("text")), "bzip2 data"}}) {
    write("input.gz", content);
    EXPECT_THAT(refusal("input.gz"), HasSubstr(what));
  }
}

TEST_F(WrongInputsTest, AreRefusedWhereTheyAreCutOrDamaged) {
  const std::string text = words(60'000, 3);
  std::mt19937 random(7);
  for (const auto& compress : {gzip, zstd, xz, bzip2})
    for (int trial = 0; trial < 12; ++trial) {
      std::string bytes = compress(text);
      if (trial % 2 == 0) {
        bytes.resize(2 + random() % (bytes.size() - 2));
      } else {
        bytes[11 + random() % (bytes.size() - 11)] ^= static_cast<char>(1 + random() % 255);
      }
      write("input.txt", bytes);
      const std::string message = error_of([&] {
        prepare(options("out", {path("input.txt")}));
        // zstd's frames without a checksum may hide a change: then it is other text, which no reader of the format can know.
        if (compress("")[0] == zstd("")[0]) throw Error("input.txt: unnoticed");
      });
      EXPECT_THAT(message, HasSubstr("input.txt")) << trial;
      std::filesystem::remove_all(path("out"));
    }
}

TEST_F(WrongInputsTest, AreRefusedOnAPipe) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  auto* const previous_handler = std::signal(SIGPIPE, SIG_IGN);  // the reader goes away
  for (const Wrong& wrong : formats()) {
    std::thread writer([&] { std::ofstream(path("pipe"), std::ios::binary) << wrong.content; });
    EXPECT_THAT(refusal("pipe"), HasSubstr(wrong.what));
    writer.join();
  }
  std::signal(SIGPIPE, previous_handler);
}

TEST_F(WrongInputsTest, TheTokensOfMegatronAreKnownByTheirIndex) {
  write("gpt_text_document.idx", "MMIDIDX\0\0\1\0\0\0\0\0\0\0\x08"s);
  write("gpt_text_document.bin", "all of these bytes could be text");
  EXPECT_THAT(refusal("gpt_text_document.bin"), HasSubstr("the tokens of a Megatron data set"));
}

}  // namespace
}  // namespace lamina
