#include "core/io/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <vector>

#include "core/base/error.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("lamina-file-test-{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  size_t num_files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  fs::path folder_;
};

template <class F>
std::string error_of(F&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

TEST_F(FileTest, WritesTextAndBytesAndReplaces) {
  const fs::path path = folder_ / "x";
  write_file_atomically(path, std::string_view("first"));
  write_file_atomically(path, std::string_view("a\0b", 3));
  EXPECT_EQ(read_file(path), std::string("a\0b", 3));
  std::vector<uint8_t> bytes(300'000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
  write_file_atomically(path, std::span<const uint8_t>(bytes));
  const std::string back = read_file(path);
  EXPECT_TRUE(std::equal(back.begin(), back.end(), reinterpret_cast<const char*>(bytes.data()),
                         reinterpret_cast<const char*>(bytes.data()) + bytes.size()));
  EXPECT_EQ(num_files(), 1u) << "a temporary stayed behind";
}

TEST_F(FileTest, AFailedWriteKeepsTheOldFileAndLeavesNothing) {
  const fs::path path = folder_ / "x";
  write_file_atomically(path, std::string_view("old"));
  auto* const previous_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit previous{};
  ::getrlimit(RLIMIT_FSIZE, &previous);
  const rlimit limit{1000, previous.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const std::string message = error_of([&] { write_file_atomically(path, std::string(5000, 'y')); });
  ::setrlimit(RLIMIT_FSIZE, &previous);
  std::signal(SIGXFSZ, previous_handler);
  EXPECT_THAT(message, AllOf(HasSubstr(path.string()), HasSubstr("can't write"), HasSubstr("File too large")));
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(num_files(), 1u);
}

TEST_F(FileTest, ErrorsNameThePathAndTheReason) {
  EXPECT_THAT(error_of([&] { write_file_atomically(folder_ / "no" / "x", std::string_view("a")); }),
              AllOf(HasSubstr("no/x"), HasSubstr("No such file or directory")));
  EXPECT_THAT(error_of([&] { (void)read_file(folder_ / "missing"); }),
              AllOf(HasSubstr("missing"), HasSubstr("No such file or directory")));
  EXPECT_THAT(error_of([&] { fsync_file(folder_ / "missing"); }), HasSubstr("missing"));
  EXPECT_THAT(error_of([&] { fsync_tree(folder_ / "missing"); }), HasSubstr("missing"));
  write_file_atomically(folder_ / "x", std::string_view("a"));
  EXPECT_THAT(error_of([&] { fsync_directory(folder_ / "x"); }), HasSubstr("Not a directory"));
  EXPECT_THAT(error_of([&] { rename_durably(folder_ / "missing", folder_ / "y"); }),
              AllOf(HasSubstr("missing"), HasSubstr("/y")));
  // A folder stands where the file should go: the rename fails, and nothing is left.
  fs::create_directories(folder_ / "d" / "inner");
  EXPECT_THAT(error_of([&] { write_file_atomically(folder_ / "d", std::string_view("a")); }), HasSubstr("can't put"));
  EXPECT_EQ(num_files(), 2u);
}

TEST_F(FileTest, FlushesATreeAndRenames) {
  fs::create_directories(folder_ / "a" / "b");
  write_file_atomically(folder_ / "a" / "b" / "x", std::string_view("1"));
  fsync_tree(folder_ / "a");
  rename_durably(folder_ / "a", folder_ / "c");
  EXPECT_EQ(read_file(folder_ / "c" / "b" / "x"), "1");
  EXPECT_FALSE(fs::exists(folder_ / "a"));
}

TEST_F(FileTest, NamesAFullDisk) {
  EXPECT_EQ(describe_errno(ENOSPC), "disk full");
  EXPECT_EQ(describe_errno(EDQUOT), "disk quota exceeded");
  EXPECT_EQ(describe_errno(ENOENT), "No such file or directory");
}

}  // namespace
}  // namespace lamina::io
