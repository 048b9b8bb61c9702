#include "core/io/input_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <random>
#include <string>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

std::string gzip(const std::string& text) {
  z_stream state{};
  EXPECT_EQ(deflateInit2(&state, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&state, text.size()), '\0');
  state.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  state.avail_in = static_cast<uInt>(text.size());
  state.next_out = reinterpret_cast<Bytef*>(out.data());
  state.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&state, Z_FINISH), Z_STREAM_END);
  out.resize(state.total_out);
  deflateEnd(&state);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

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

TEST_F(InputStreamTest, PlainGzipAndZstdGiveTheSameBytes) {
  write_file_atomically(folder_ / "x.txt", text_);
  write_file_atomically(folder_ / "x.txt.gz", gzip(text_));
  write_file_atomically(folder_ / "x.txt.zst", zstd(text_));
  for (const char* name : {"x.txt", "x.txt.gz", "x.txt.zst"})
    for (size_t block : {size_t{77}, size_t{1} << 16, size_t{1} << 22})
      EXPECT_EQ(read_all(folder_ / name, block), text_) << name << " " << block;
}

TEST_F(InputStreamTest, SeveralMembersAndFramesAndEmptyOnes) {
  const std::string half = text_.substr(0, 1000), rest = text_.substr(1000);
  write_file_atomically(folder_ / "x.gz", gzip(half) + gzip("") + gzip(rest) + gzip(""));
  write_file_atomically(folder_ / "x.zst", zstd(half) + zstd("") + zstd(rest) + zstd(""));
  EXPECT_EQ(read_all(folder_ / "x.gz", 4096), text_);
  EXPECT_EQ(read_all(folder_ / "x.zst", 4096), text_);
  write_file_atomically(folder_ / "empty.gz", gzip(""));
  write_file_atomically(folder_ / "empty", std::string_view(""));
  EXPECT_EQ(read_all(folder_ / "empty.gz", 10), "");
  EXPECT_EQ(read_all(folder_ / "empty", 10), "");
}

TEST_F(InputStreamTest, DamagedFilesAreNamed) {
  const std::string g = gzip(text_), z = zstd(text_);
  for (size_t cut : {size_t{0}, size_t{5}, g.size() / 2, g.size() - 1})
    EXPECT_THAT(error_of("x.gz", g.substr(0, cut)), AllOf(HasSubstr("x.gz"), HasSubstr("truncated"))) << cut;
  for (size_t cut : {size_t{0}, size_t{2}, z.size() / 2, z.size() - 1})
    EXPECT_THAT(error_of("x.zst", z.substr(0, cut)), AllOf(HasSubstr("x.zst"), HasSubstr("truncated"))) << cut;
  EXPECT_THAT(error_of("text.gz", "this is no gzip at all"), AllOf(HasSubstr("text.gz"), HasSubstr("not valid gzip")));
  EXPECT_THAT(error_of("text.zst", "this is no Zstandard"), AllOf(HasSubstr("text.zst"), HasSubstr("not valid Zst")));
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
