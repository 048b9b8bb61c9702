#include "core/base/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "core/base/error.h"

namespace lamina::signals {
namespace {

pid_t moved_in = 0;      // the process that has the thread: a child made by fork() alone has none
sigset_t mask_at_start;  // valid once moved_in is set

sigset_t signals_from_outside() {
  sigset_t set;
  sigfillset(&set);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS,  // faults
                        SIGPIPE, SIGXFSZ, SIGTTIN, SIGTTOU})                        // reading and writing
    sigdelset(&set, own);
  return set;
}

// Until the process ends, through exit() and the destructors of statics: handlers touch what has none.
void* handle_signals(void*) {
  pthread_sigmask(SIG_SETMASK, &mask_at_start, nullptr);
  for (;;) ::pause();
}

}  // namespace

void move_to_own_thread() {
  if (moved_in == ::getpid()) return;
  const sigset_t outside = signals_from_outside();
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &outside, &before);
  if (moved_in == 0) mask_at_start = before;
  pthread_t thread{};
  if (const int reason = pthread_create(&thread, nullptr, handle_signals, nullptr); reason != 0) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw Error("can't start the thread that handles signals: {}", std::strerror(reason));
  }
  pthread_detach(thread);
  moved_in = ::getpid();
}

void restore_mask() noexcept {
  if (moved_in != 0) pthread_sigmask(SIG_SETMASK, &mask_at_start, nullptr);
}

bool is_ignored(int signal) noexcept {
  struct sigaction action {};
  return ::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

}  // namespace lamina::signals
