#include "core/io/append_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <utility>

#include "core/base/error.h"
#include "core/io/file.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;

class AppendFileTest : public testing::Test {
 protected:
  AppendFileTest() : folder_(fs::temp_directory_path() / fmt::format("lamina-append-{}", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~AppendFileTest() override { fs::remove_all(folder_); }
  fs::path folder_;
};

std::string failure_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& failure) {
    return failure.what();
  }
  return "no error";
}

TEST_F(AppendFileTest, WhatIsAppendedIsInTheFileAtOnce) {
  AppendFile file(folder_ / "log");
  file.append("one");
  EXPECT_EQ(read_file(folder_ / "log"), "one");
  file.append(std::string_view("\0two", 4));
  EXPECT_EQ(read_file(folder_ / "log"), std::string("one\0two", 7));
  AppendFile(folder_ / "log").append("!");
  EXPECT_EQ(read_file(folder_ / "log").size(), 8u);
}

TEST_F(AppendFileTest, MovesAndThenWritesNothing) {
  AppendFile first(folder_ / "a"), second(folder_ / "b");
  AppendFile moved = std::move(first);
  EXPECT_FALSE(first.is_open());  // NOLINT: moved from
  first.append("lost");           // NOLINT
  moved.append("kept");
  second = std::move(moved);
  second.append(" too");
  EXPECT_FALSE(moved.is_open());  // NOLINT
  EXPECT_EQ(read_file(folder_ / "a"), "kept too");
  EXPECT_EQ(read_file(folder_ / "b"), "");
  EXPECT_NO_THROW(AppendFile().append("nowhere"));
}

TEST_F(AppendFileTest, FailuresNameThePathAndTheReason) {
  const fs::path missing = folder_ / "missing" / "log";
  EXPECT_THAT(failure_of([&] { AppendFile file(missing); }), testing::HasSubstr(missing.string()));
  AppendFile(folder_ / "there").append("x");
  EXPECT_THAT(failure_of([&] { AppendFile file(folder_ / "there", AppendFile::Mode::create); }),
              testing::HasSubstr("can't open for appending"));
  EXPECT_EQ(read_file(folder_ / "there"), "x");
  EXPECT_EQ(failure_of([] { AppendFile("/dev/full").append("x"); }), "/dev/full: can't append: disk full");
}

}  // namespace
}  // namespace lamina::io
