#include "core/base/stop.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <string>
#include <thread>

#include "core/base/signals.h"

namespace lamina {
namespace {

// The wait status of a process that does this, and ends with status 0 when it is true. It starts without handlers.
int ending_of(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body() ? 0 : 1);
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

bool is_fulfilled(const std::function<bool()>& body) {
  const int status = ending_of(body);
  EXPECT_FALSE(WIFSIGNALED(status)) << "signal " << WTERMSIG(status);
  return status == 0;
}

// As another process would. How long until it is handled is the system's choice.
bool requested_by(int signal) {
  ::kill(::getpid(), signal);
  for (int i = 0; i < 2000 && !stop::requested(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  return stop::requested();
}

void send_and_wait(int signal) {
  ::kill(::getpid(), signal);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
}

TEST(Stop, NothingIsRequestedAtFirst) {
  EXPECT_FALSE(stop::requested());
  EXPECT_EQ(stop::reason(), "");
  EXPECT_NO_THROW(stop::check());
}

TEST(Stop, SignalsSetTheRequestAndTheFirstIsNamed) {
  EXPECT_TRUE(is_fulfilled([] {
    stop::catch_signals();
    if (!requested_by(SIGUSR1)) return false;
    for (int i = 0; i < 3; ++i) send_and_wait(SIGTERM);  // neither another signal nor a repeated one ends the process
    if (stop::reason() != "SIGUSR1") return false;
    stop::reset();
    return requested_by(SIGTERM) && stop::reason() == "SIGTERM";
  }));
}

TEST(Stop, CheckThrowsTheReason) {
  stop::request("train.max_minutes");
  stop::request("another");
  try {
    stop::check();
    ADD_FAILURE() << "expected Stopped";
  } catch (const Stopped& stopped) {
    EXPECT_STREQ(stopped.what(), "train.max_minutes");
  }
  stop::reset();
}

TEST(Stop, TheFirstInterruptAsksTheSecondEnds) {
  const int status = ending_of([] {
    stop::catch_signals(true);
    if (!requested_by(SIGINT) || stop::reason() != "SIGINT") return false;
    ::kill(::getpid(), SIGINT);
    std::this_thread::sleep_for(std::chrono::seconds(20));
    return false;
  });
  ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
  EXPECT_EQ(WTERMSIG(status), SIGINT);
}

TEST(Stop, AnIgnoredInterruptStaysIgnored) {
  EXPECT_TRUE(is_fulfilled([] {
    std::signal(SIGINT, SIG_IGN);
    std::signal(SIGTERM, SIG_IGN);  // a scheduler's word counts all the same
    stop::catch_signals(true);
    send_and_wait(SIGINT);
    return !stop::requested() && requested_by(SIGTERM);
  }));
}

TEST(Signals, EndAProcessThatDoesNotCatchThem) {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGHUP}) {
    const int status = ending_of([signal] {
      signals::move_to_own_thread();
      ::kill(::getpid(), signal);
      std::this_thread::sleep_for(std::chrono::seconds(20));
      return false;
    });
    ASSERT_TRUE(WIFSIGNALED(status)) << signal;
    EXPECT_EQ(WTERMSIG(status), signal);
  }
  const int interrupted = ending_of([] {  // nor does catching two of them touch the third
    stop::catch_signals();
    ::kill(::getpid(), SIGINT);
    std::this_thread::sleep_for(std::chrono::seconds(20));
    return false;
  });
  EXPECT_TRUE(WIFSIGNALED(interrupted) && WTERMSIG(interrupted) == SIGINT);
}

std::atomic<pthread_t> handled_by;

TEST(Signals, HandlersRunOnAThreadOfTheirOwn) {
  EXPECT_TRUE(is_fulfilled([] {
    signals::move_to_own_thread();
    signals::move_to_own_thread();
    handled_by = ::pthread_self();
    std::signal(SIGHUP, [](int) {  // set by a library that knows nothing of this
      handled_by = ::pthread_self();
      stop::request("SIGHUP");
    });
    return requested_by(SIGHUP) && ::pthread_equal(handled_by, ::pthread_self()) == 0;
  }));
}

TEST(Signals, ChildrenGetTheMaskOfTheStart) {
  EXPECT_TRUE(is_fulfilled([] {
    sigset_t before, blocked, restored;
    sigemptyset(&before);
    sigaddset(&before, SIGWINCH);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    signals::move_to_own_thread();
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
    signals::restore_mask();
    pthread_sigmask(SIG_SETMASK, nullptr, &restored);
    return sigismember(&blocked, SIGTERM) == 1 && sigismember(&blocked, SIGSEGV) == 0 &&
           sigismember(&restored, SIGTERM) == 0 && sigismember(&restored, SIGWINCH) == 1;
  }));
}

}  // namespace
}  // namespace lamina
