#include "core/io/input_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <random>
#include <string>

#include "core/base/error.h"
#include "core/io/file.h"
#include "tests/support/compressed.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class InputStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("lamina-stream-test-{}", ::getpid());
    fs::create_directories(folder_);
    std::mt19937 random(1);
    // Compressible, and larger than every buffer inside.
    while (text_.size() < 700'000) text_ += fmt::format("line {} of {}\n", random() % 1000, text_.size());
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string read_all(const fs::path& path, size_t block) {
    InputStream first(path);
    InputStream stream = std::move(first);
    std::string out, buffer(block, '\0');
    while (const size_t count = stream.read(buffer.data(), buffer.size())) out.append(buffer.data(), count);
    EXPECT_EQ(stream.read(buffer.data(), buffer.size()), 0u);
    EXPECT_EQ(stream.file_bytes_read(), static_cast<int64_t>(fs::file_size(path)));
    return out;
  }
  std::string error_of(const std::string& name, const std::string& content) {
    write_file_atomically(folder_ / name, content);
    try {
      read_all(folder_ / name, 1000);
    } catch (const Error& error) {
      return error.what();
    }
    ADD_FAILURE() << "no Error was thrown";
    return "";
  }

  fs::path folder_;
  std::string text_;
};

TEST_F(InputStreamTest, TheContentDecidesWhateverTheName) {
  const std::string contents[] = {text_, gzip(text_), zstd(text_), xz(text_), bzip2(text_)};
  for (const char* name : {"x.txt", "x.txt.gz", "x.zst", "x.bz2", "x"})
    for (const std::string& content : contents) {
      write_file_atomically(folder_ / name, content);
      EXPECT_EQ(read_all(folder_ / name, size_t{1} << 16), text_) << name << " " << content.substr(0, 4);
      EXPECT_EQ(InputStream(folder_ / name).is_compressed(), content != text_);
    }
  for (const std::string& content : contents) {
    write_file_atomically(folder_ / "x", content);
    for (size_t block : {size_t{77}, size_t{1} << 22}) EXPECT_EQ(read_all(folder_ / "x", block), text_) << block;
  }
  // Short texts, some of which begin as a compressed file does.
  for (const std::string& text :
       {std::string("B"), std::string("BZh"), std::string("BZh9 is no block"), std::string("x")}) {
    write_file_atomically(folder_ / "short", text);
    EXPECT_EQ(read_all(folder_ / "short", 10), text);
  }
}

TEST_F(InputStreamTest, SeveralMembersAndFramesAndEmptyOnes) {
  const std::string half = text_.substr(0, 1000), rest = text_.substr(1000);
  for (const auto& compress : {gzip, zstd, xz, bzip2}) {
    write_file_atomically(folder_ / "x", compress(half) + compress("") + compress(rest) + compress(""));
    EXPECT_EQ(read_all(folder_ / "x", 4096), text_);
    write_file_atomically(folder_ / "empty", compress(""));
    EXPECT_EQ(read_all(folder_ / "empty", 10), "");
  }
  write_file_atomically(folder_ / "empty", std::string_view(""));
  EXPECT_EQ(read_all(folder_ / "empty", 10), "");
  // A frame of other data first, as pzstd writes it: four bytes of it.
  const std::string skipped("\x50\x2a\x4d\x18\x04\0\0\0abcd", 12);
  write_file_atomically(folder_ / "x", skipped + zstd(text_));
  EXPECT_EQ(read_all(folder_ / "x", 4096), text_);
}

// As `gzip -d` and `bzip2 -d` do with what comes from a tape, and xz with multiples of four.
TEST_F(InputStreamTest, ZerosAfterTheLastMemberArePadding) {
  for (const auto& compress : {gzip, bzip2, xz})
    for (size_t count : {size_t{4}, size_t{512}, size_t{400'000}}) {
      write_file_atomically(folder_ / "x", compress(text_) + std::string(count, '\0'));
      EXPECT_EQ(read_all(folder_ / "x", 1 << 16), text_);
    }
  write_file_atomically(folder_ / "x", gzip(text_) + '\0');
  EXPECT_EQ(read_all(folder_ / "x", 1 << 16), text_);
  const std::string zeros(300'000, '\0');
  EXPECT_THAT(error_of("x", gzip(text_) + zeros + gzip(text_)), HasSubstr("other data after the zeros"));
  EXPECT_THAT(error_of("x", bzip2(text_) + zeros + "x"), HasSubstr("other data after the zeros"));
  EXPECT_THAT(error_of("x", gzip(text_) + "no member, whatever its length"), HasSubstr("not valid gzip"));
  EXPECT_THAT(error_of("x", bzip2(text_) + "no stream"), HasSubstr("not valid bzip2"));
  EXPECT_THAT(error_of("x", xz(text_) + "x"), HasSubstr("x: "));
}

TEST_F(InputStreamTest, StandardInputIsReadFromAFileOrAPipe) {
  const int kept = ::dup(STDIN_FILENO);
  write_file_atomically(folder_ / "x", xz(text_));
  ASSERT_NE(std::freopen((folder_ / "x").c_str(), "rb", stdin), nullptr);
  std::string out, buffer(5000, '\0');
  InputStream stream(standard_input);
  while (const size_t count = stream.read(buffer.data(), buffer.size())) out.append(buffer.data(), count);
  EXPECT_EQ(out, text_);
  EXPECT_EQ(describe_input(standard_input), "standard input");
  ::dup2(kept, STDIN_FILENO);
  ::close(kept);
}

TEST_F(InputStreamTest, DamagedFilesAreNamed) {
  const std::string g = gzip(text_), z = zstd(text_);
  for (size_t cut : {size_t{0}, size_t{5}, g.size() / 2, g.size() - 1})
    EXPECT_THAT(error_of("x.gz", g.substr(0, cut)), AllOf(HasSubstr("x.gz"), HasSubstr("truncated"))) << cut;
  for (size_t cut : {size_t{0}, size_t{2}, z.size() / 2, z.size() - 1})
    EXPECT_THAT(error_of("x.zst", z.substr(0, cut)), AllOf(HasSubstr("x.zst"), HasSubstr("truncated"))) << cut;
  const std::string x = xz(text_), b = bzip2(text_);
  for (size_t cut : {size_t{0}, size_t{5}, x.size() / 2, x.size() - 1})
    EXPECT_THAT(error_of("x.xz", x.substr(0, cut)), AllOf(HasSubstr("x.xz"), HasSubstr("truncated"))) << cut;
  for (size_t cut : {size_t{0}, size_t{5}, b.size() / 2, b.size() - 1})
    EXPECT_THAT(error_of("x.bz2", b.substr(0, cut)), AllOf(HasSubstr("x.bz2"), HasSubstr("truncated"))) << cut;
  for (std::string damaged : {x, b}) {
    damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 1);
    EXPECT_THAT(error_of("damaged", damaged), HasSubstr("damaged: not valid"));
  }
  std::string flipped = g;
  flipped[g.size() - 6] = static_cast<char>(flipped[g.size() - 6] ^ 1);  // in the checksum
  EXPECT_THAT(error_of("crc.gz", flipped), AllOf(HasSubstr("crc.gz"), HasSubstr("incorrect data check")));
}

TEST_F(InputStreamTest, MissingFilesAndFolders) {
  EXPECT_THROW(InputStream(folder_ / "missing"), Error);
  InputStream stream(folder_);
  char byte = 0;
  EXPECT_THROW(stream.read(&byte, 1), Error);
}

}  // namespace
}  // namespace lamina::io
