#include "launch/study/child_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>
#include <utility>

#include "core/base/signals.h"
#include "core/io/file.h"
#include "tests/trainer/checkpoint_support.h"

namespace lamina::study {
namespace {

using testing::HasSubstr;
using testing_checkpoint::message_of;
using testing_checkpoint::TemporaryFolder;

int wait_for(ChildProcess& process) {
  for (;;) {
    if (const auto status = process.poll()) return *status;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST(ChildProcess, AppendsWhatItPrintsAndTellsHowItEnded) {
  const TemporaryFolder folder;
  const auto log = folder.path() / "log";
  io::write_file_atomically(log, std::string_view("before\n"));
  ChildProcess process({"sh", "-c", "echo out; echo err >&2; exit 75"}, log);
  const int status = wait_for(process);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 75);
  EXPECT_EQ(io::read_file(log), "before\nout\nerr\n");
  EXPECT_FALSE(process.poll());  // told once
}

TEST(ChildProcess, Moves) {
  const TemporaryFolder folder;
  ChildProcess process({"sleep", "100"}, folder.path() / "log");
  ChildProcess moved(std::move(process));
  ChildProcess assigned;
  assigned = std::move(moved);
  EXPECT_FALSE(assigned.poll());
  assigned.signal(SIGUSR1);
  const int status = wait_for(assigned);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGUSR1);
}

TEST(ChildProcess, IsKilledWithItsOwner) {
  const TemporaryFolder folder;
  const auto start = std::chrono::steady_clock::now();
  { const ChildProcess process({"sleep", "100"}, folder.path() / "log"); }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(50));
}

TEST(ChildProcess, ACommandThatIsNotThereIsNamed) {
  const TemporaryFolder folder;
  EXPECT_EQ(message_of([&] { ChildProcess({"/no/such/program"}, folder.path() / "log"); }),
            "/no/such/program: can't start: No such file or directory");
  EXPECT_THAT(message_of([&] { ChildProcess({"true"}, folder.path() / "none" / "log"); }),
              HasSubstr("none/log: can't open"));
}

TEST(RunCommand, GivesOutputAndStatus) {
  EXPECT_EQ(run_command({"sh", "-c", "echo a; echo b >&2"}).text, "a\nb");
  EXPECT_EQ(run_command({"sh", "-c", "exit 3"}).exit_status, 3);
  EXPECT_EQ(run_command({"/no/such/program"}).exit_status, 127);
  EXPECT_EQ(run_command({"sh", "-c", "kill -9 $$"}).exit_status, 137);
}

// What a sweep starts may be stopped like what a shell starts.
TEST(RunCommand, SignalsAreNotBlocked) {
  const pid_t sweep = ::fork();
  if (sweep == 0) {
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, nullptr);
    signals::move_to_own_thread();
    const bool unblocked = run_command({"grep", "SigBlk", "/proc/self/status"}).text == "SigBlk:\t0000000000000000";
    ::_exit(unblocked && run_command({"sh", "-c", "kill -TERM $$; sleep 20"}).exit_status == 128 + SIGTERM ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(sweep, &status, 0), sweep);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace lamina::study
