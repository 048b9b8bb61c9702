#include "core/io/folder_lock.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "core/base/stop.h"
#include "core/io/file.h"

namespace lamina::io {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;

constexpr LockTimes fast{.refresh = 20ms, .stale = 300ms, .ending = 200ms};

class FolderLockTest : public testing::Test {
 protected:
  void SetUp() override {
    static std::atomic<int> counter{0};
    root_ = fs::temp_directory_path() / fmt::format("lamina-lock-{}-{}", ::getpid(), counter++);
    fs::create_directories(root_);
    folder_ = root_ / "runs" / "x";
  }
  void TearDown() override { fs::remove_all(root_); }

  // The lock of a process that is gone, changed by `edit` (text to find, text in its place).
  void leave_behind(const std::string& find = "", const std::string& replace = "") {
    fs::create_directories(folder_);
    const pid_t child = ::fork();
    if (child == 0) {
      FolderLock lock(folder_, "lamina train");
      ::_exit(lock.try_take() ? 0 : 1);  // without giving it back
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_EQ(status, 0);
    std::string text = read_file(path());
    if (!find.empty()) {
      const size_t at = text.find(find), end = text.find('\n', at);
      ASSERT_NE(at, std::string::npos) << text;
      text.replace(at, end - at, replace);
      write_file_atomically(path(), text);
    }
  }
  fs::path path() const { return folder_ / "lock"; }

  fs::path root_, folder_;
};

std::string refusal_of(FolderLock& lock) {
  try {
    lock.take();
  } catch (const FolderLocked& refusal) {
    return refusal.what();
  }
  return "taken";
}

TEST_F(FolderLockTest, ASecondOneIsRefusedByName) {
  FolderLock first(folder_, "lamina train");
  ASSERT_TRUE(first.try_take());
  EXPECT_THAT(read_file(path()), AllOf(HasSubstr(fmt::format("process: {}\n", ::getpid())), HasSubstr("\nsince: 20"),
                                       HasSubstr("command: lamina train\n")));
  FolderLock second(folder_, "lamina sweep");
  EXPECT_THAT(refusal_of(second), AllOf(HasSubstr(path().string()), HasSubstr(fmt::format("process {} on", ::getpid())),
                                        HasSubstr("(lamina train, since 20")));
  ASSERT_TRUE(FolderLock::holder(folder_));
  EXPECT_EQ(FolderLock::holder(folder_)->process, ::getpid());
  EXPECT_NO_THROW(first.refresh());
}

TEST_F(FolderLockTest, IsGivenBackWithTheFoldersItMade) {
  {
    FolderLock lock(folder_, "lamina train");
    ASSERT_TRUE(lock.try_take());
  }
  EXPECT_FALSE(fs::exists(root_ / "runs"));
  EXPECT_FALSE(FolderLock::holder(folder_));
  {
    FolderLock lock(folder_, "lamina train");
    ASSERT_TRUE(lock.try_take());
    write_file_atomically(folder_ / "kept", std::string_view("x"));
  }
  EXPECT_TRUE(fs::exists(folder_ / "kept"));
  EXPECT_FALSE(fs::exists(path()));
}

TEST_F(FolderLockTest, ADeadProcessesLockIsTakenAtOnce) {
  leave_behind();
  EXPECT_FALSE(FolderLock::holder(folder_));
  FolderLock lock(folder_, "lamina train");
  EXPECT_TRUE(lock.try_take());
}

TEST_F(FolderLockTest, AProcessIdThatIsUsedAgainIsNotTheHolder) {
  leave_behind("process: ", fmt::format("process: {}", ::getpid()));  // alive, but begun at another time
  FolderLock lock(folder_, "lamina train");
  EXPECT_TRUE(lock.try_take());
}

TEST_F(FolderLockTest, AKilledProcessThatIsNotReapedIsDead) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    FolderLock lock(folder_, "lamina train");
    const char answer = lock.try_take() ? 'y' : 'n';
    if (::write(ready[1], &answer, 1) == 1) ::pause();
    ::_exit(1);
  }
  char answer = 0;
  ASSERT_EQ(::read(ready[0], &answer, 1), 1);
  ASSERT_EQ(answer, 'y');
  FolderLock lock(folder_, "lamina train");
  EXPECT_THAT(refusal_of(lock), HasSubstr(fmt::format("process {} on", child)));
  ::kill(child, SIGKILL);
  lock.take();  // at once: the process is ending, then a zombie
  ::waitpid(child, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(FolderLockTest, WhoseLauncherIsGoneHasTimeToEnd) {
  {
    FolderLock holder(folder_, "lamina train");
    ASSERT_TRUE(holder.try_take());
    std::string text = read_file(path());
    const size_t at = text.find("parent: "), end = text.find('\n', at);
    write_file_atomically(path(), text.replace(at, end - at, "parent: 1234567"));
    FolderLock patient(folder_, "lamina train", {.refresh = 20ms, .stale = 300ms, .ending = 60s});
    EXPECT_FALSE(patient.try_take());
    EXPECT_THAT(patient.waits_for(), HasSubstr("is ending"));
    FolderLock hurried(folder_, "lamina train", fast);
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_THAT(refusal_of(hurried), HasSubstr("works on this folder"));
    EXPECT_GE(std::chrono::steady_clock::now() - begin, 200ms);
    fs::remove(path());
    EXPECT_TRUE(patient.try_take());
  }
}

TEST_F(FolderLockTest, AnotherMachinesIsTakenWhenItShowsNoSignOfLife) {
  for (const char* line : {"boot: ", "pid_namespace: "}) {
    leave_behind(line, fmt::format("{}another", line));
    FolderLock lock(folder_, "lamina train", fast);
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_FALSE(lock.try_take());
    EXPECT_THAT(lock.waits_for(), HasSubstr("sign of life"));
    lock.take();
    EXPECT_GE(std::chrono::steady_clock::now() - begin, 300ms) << line;
    EXPECT_NO_THROW(lock.refresh());
  }
}

TEST_F(FolderLockTest, AnotherMachinesThatLivesIsRefused) {
  leave_behind("boot: ", "boot: another");
  std::atomic<bool> done{false};
  std::thread holder([&] {
    while (!done) {
      fs::last_write_time(path(), fs::file_time_type::clock::now());
      std::this_thread::sleep_for(20ms);
    }
  });
  FolderLock lock(folder_, "lamina train", fast);
  EXPECT_THAT(refusal_of(lock), HasSubstr("works on this folder"));
  done = true;
  holder.join();
}

TEST_F(FolderLockTest, AHalfWrittenOneIsWatchedToo) {
  fs::create_directories(folder_);
  write_file_atomically(path(), std::string_view(""));
  FolderLock lock(folder_, "lamina train", fast);
  EXPECT_FALSE(lock.try_take());
  EXPECT_FALSE(FolderLock::holder(folder_));
  lock.take();
}

TEST_F(FolderLockTest, TheHolderTouchesItAndLearnsOfItsLoss) {
  FolderLock lock(folder_, "lamina train", fast);
  lock.take();
  const auto before = fs::last_write_time(path());
  std::this_thread::sleep_for(200ms);
  EXPECT_GT(fs::last_write_time(path()), before);
  EXPECT_NO_THROW(lock.check());
  std::string text = read_file(path());
  text.replace(text.find("token: "), 10, "token: 012");
  write_file_atomically(path(), text);
  std::this_thread::sleep_for(200ms);
  EXPECT_TRUE(lock.is_lost());
  EXPECT_THROW(lock.check(), FolderLocked);
  EXPECT_THROW(lock.refresh(), FolderLocked);
  lock.release();
  EXPECT_EQ(read_file(path()), text);  // the new holder's stays
}

TEST_F(FolderLockTest, OfManyAtOnceOneWins) {
  for (const bool is_left_behind : {false, true}) {
    if (is_left_behind) leave_behind();
    constexpr int count = 8;
    std::atomic<int> taken{0}, refused{0};
    std::vector<std::unique_ptr<FolderLock>> locks;
    for (int i = 0; i < count; ++i) locks.push_back(std::make_unique<FolderLock>(folder_, "lamina train"));
    std::vector<std::thread> threads;
    threads.reserve(count);
    for (int i = 0; i < count; ++i) {
      threads.emplace_back([&, i] {
        try {
          locks[static_cast<size_t>(i)]->take();
          ++taken;
        } catch (const FolderLocked&) {
          ++refused;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(taken, 1);
    EXPECT_EQ(refused, count - 1);
    locks.clear();
    EXPECT_FALSE(fs::exists(path()));
  }
}

TEST_F(FolderLockTest, AStopEndsTheWait) {
  leave_behind("boot: ", "boot: another");
  FolderLock lock(folder_, "lamina train");
  stop::request("test");
  EXPECT_THROW(lock.take(), Stopped);
  stop::reset();
}

TEST_F(FolderLockTest, AFolderThatCannotBeWrittenIsAnError) {
  write_file_atomically(root_ / "file", std::string_view("in the way"));
  FolderLock lock(root_ / "file" / "x", "lamina train");
  EXPECT_THROW(lock.try_take(), Error);
}

}  // namespace
}  // namespace lamina::io
