#include "core/io/mapped_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/guarded_copy.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::ExitedWithCode;
using ::testing::HasSubstr;
using ::testing::KilledBySignal;

const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));

class MappedFileTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("lamina-mapped-{}", ::getpid());
    fs::create_directories(folder_);
    std::mt19937 random(1);
    for (size_t i = 0; i < 5 * page + 100; ++i) text_ += static_cast<char>(random());
    path_ = write("file", text_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  static std::string read(const MappedFile& file, size_t offset, size_t bytes) {
    std::string result(bytes, '\0');
    result.resize(file.read(static_cast<int64_t>(offset), bytes, result.data()).bytes);
    return result;
  }

  fs::path folder_, path_;
  std::string text_;
};

TEST_F(MappedFileTest, ReadsWhatPreadDoes) {
  const MappedFile file(path_);
  ASSERT_TRUE(file.is_mapped());
  std::vector<size_t> places{0, 1, text_.size() - 1, text_.size(), text_.size() + page};
  for (size_t i = 1; i <= 5; ++i)
    for (const size_t place : {i * page - 1, i * page, i * page + 1}) places.push_back(place);
  for (const size_t begin : places)
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{2}, page - 1, page, page + 1, 3 * page, text_.size()})
      ASSERT_TRUE(read(file, begin, bytes) == (begin < text_.size() ? text_.substr(begin, bytes) : ""))
          << begin << " " << bytes;
  EXPECT_TRUE(MappedFile(write("empty", "")).read(0, 1, text_.data()).bytes == 0);
  EXPECT_THROW(MappedFile(folder_ / "missing"), Error);
}

TEST_F(MappedFileTest, ACutFileEndsWhereItWasCut) {
  const MappedFile file(path_);
  char byte = 0;
  EXPECT_EQ(file.read(0, 1, &byte).stamp, file.stamp_at_open());
  const size_t end = 2 * page + 10;
  fs::resize_file(path_, end);
  EXPECT_TRUE(read(file, 0, end) == text_.substr(0, end));
  EXPECT_TRUE(read(file, page, 2 * page) == text_.substr(page, page + 10));  // within the last page, and beyond it
  EXPECT_TRUE(read(file, 2 * page, page) == text_.substr(2 * page, 10));
  EXPECT_EQ(read(file, end, 1), "");
  EXPECT_EQ(read(file, 4 * page, page), "");
  EXPECT_EQ(file.read(0, 1, &byte).stamp.bytes, static_cast<int64_t>(end));
  // Whole again, with other bytes.
  std::fstream(path_, std::ios::in | std::ios::out | std::ios::binary) << std::string(text_.size(), 'x');
  EXPECT_TRUE(read(file, page, 4 * page) == std::string(4 * page, 'x'));
}

TEST_F(MappedFileTest, AReplacedFileIsReadOnAsItWas) {
  const MappedFile file(path_);
  fs::create_hard_link(path_, folder_ / "old");
  fs::rename(write("new", "another"), path_);
  EXPECT_TRUE(read(file, 0, text_.size()) == text_);
  char byte = 0;
  EXPECT_EQ(file.read(0, 1, &byte).stamp.bytes, 7);
  fs::remove(path_);
  EXPECT_TRUE(read(file, 0, text_.size()) == text_);
  EXPECT_EQ(file.read(0, 1, &byte).stamp, FileStamp{});
  // Its pages are gone, and what stands under its name can't stand for them.
  const auto error = [&] {
    try {
      read(file, page, 10);
    } catch (const Error& caught) {
      return std::string(caught.what());
    }
    return std::string();
  };
  fs::resize_file(folder_ / "old", 0);
  EXPECT_THAT(error(), HasSubstr("file: can't open: "));
  write("file", text_);
  EXPECT_THAT(error(), AllOf(HasSubstr("file: can't read bytes "), HasSubstr("another file has taken its place")));
}

TEST_F(MappedFileTest, ThreadsReadWhileAFileIsCut) {
  const fs::path cut_path = write("cut", text_);
  const MappedFile whole(path_), cut(cut_path);
  std::atomic<int> wrong = 0;
  std::atomic<int64_t> cuts_seen = 0;
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      while (!stop) {
        const size_t begin = random() % text_.size(), bytes = random() % (text_.size() - begin);
        if (read(whole, begin, bytes) != text_.substr(begin, bytes)) ++wrong;
        // Zeros where the file ended and was made longer again while its bytes were read, never others.
        const std::string found = read(cut, begin, bytes);
        if (found.size() < bytes) ++cuts_seen;
        for (size_t i = 0; i < found.size(); ++i)
          if (found[i] != text_[begin + i] && found[i] != 0) ++wrong;
      }
    });
  for (int i = 0; i < 2000 || (cuts_seen < 100 && i < 2'000'000); ++i)
    fs::resize_file(cut_path, i % 2 == 0 ? static_cast<size_t>(i) % text_.size() : text_.size());
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GE(cuts_seen, 100);
}

TEST_F(MappedFileTest, WithoutAMapItIsReadWithCalls) {
  fs::resize_file(path_, 64ll << 30);  // nearly all of it a hole
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  struct rlimit before {};
  ::getrlimit(RLIMIT_AS, &before);
  struct rlimit limit = before;
  limit.rlim_cur = static_cast<rlim_t>(pages) * page + (1ull << 30);
  ASSERT_EQ(::setrlimit(RLIMIT_AS, &limit), 0);
  std::vector<std::unique_ptr<MappedFile>> files;
  for (int i = 0; i < 300; ++i) files.push_back(std::make_unique<MappedFile>(path_));  // more than are kept open
  ::setrlimit(RLIMIT_AS, &before);
  for (const auto& file : files) {
    ASSERT_FALSE(file->is_mapped());
    ASSERT_TRUE(read(*file, page - 5, page + 10) == text_.substr(page - 5, page + 10));
  }
  fs::resize_file(path_, 2 * page);
  EXPECT_TRUE(read(*files.front(), page, 2 * page) == text_.substr(page, page));
  EXPECT_TRUE(read(*files.back(), page, 2 * page) == text_.substr(page, page));
}

using MappedFileDeathTest = MappedFileTest;

char* lost_pages(const fs::path& path) {
  fs::resize_file(path, page);
  const int descriptor = ::open(path.c_str(), O_RDWR);
  void* const map = ::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  fs::resize_file(path, 0);
  return static_cast<char*>(map);
}

void touch(const volatile char* lost) {
  static_cast<void>(*lost);
}

void exit_42(int) {
  ::_exit(42);
}

void expect_guarded_copies(const fs::path& path) {
  fs::resize_file(path, 2 * page);
  const MappedFile file(path);
  fs::resize_file(path, 0);
  char byte = 0;
  if (!file.is_mapped() || file.read(0, 1, &byte).bytes != 0) ::_exit(1);
}

TEST_F(MappedFileDeathTest, FaultsElsewhereEndTheProcess) {
  const struct rlimit no_core {};
  const fs::path other = write("other", text_);
  const auto begin = [&] {
    ::setrlimit(RLIMIT_CORE, &no_core);
    ::signal(SIGBUS, SIG_DFL);  // also under the address sanitizer, which has a handler
    expect_guarded_copies(path_);
  };
  EXPECT_EXIT((begin(), touch(lost_pages(other))), KilledBySignal(SIGBUS), "");
  EXPECT_EXIT((begin(), ::raise(SIGBUS)), KilledBySignal(SIGBUS), "");
  // While a copy is guarded, but of what it writes to.
  const auto copy_to_lost = [&] {
    begin();
    const std::string from(10, 'x');
    static_cast<void>(copy_guarded(from, from, lost_pages(other)));
  };
  EXPECT_EXIT(copy_to_lost(), KilledBySignal(SIGBUS), "");
}

TEST_F(MappedFileDeathTest, AnotherHandlerStillGetsItsFaults) {
  const fs::path other = write("other", text_), third = write("third", text_);
  const auto before = [&] {
    ::signal(SIGBUS, exit_42);
    expect_guarded_copies(path_);
    touch(lost_pages(other));
  };
  EXPECT_EXIT(before(), ExitedWithCode(42), "");
  const auto after = [&] {  // as a library that is loaded later
    expect_guarded_copies(path_);
    struct sigaction action {};
    action.sa_sigaction = [](int, siginfo_t* info, void*) { ::_exit(info->si_code == BUS_ADRERR ? 42 : 1); };
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, nullptr);
    expect_guarded_copies(third);
    touch(lost_pages(other));
  };
  EXPECT_EXIT(after(), ExitedWithCode(42), "");
}

}  // namespace
}  // namespace lamina::io
