#include "core/io/guarded_copy.h"

#include <pthread.h>
#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>

namespace lamina::io {
namespace {

struct Guard {
  std::span<const char> map;
  sigjmp_buf back;
};
constinit thread_local std::atomic<Guard*> guard_of_thread{nullptr};

// Never freed: a handler may run while the process ends. Linked, so that a checker of leaks finds all of them.
struct HandlerBefore {
  struct sigaction action;
  const HandlerBefore* earlier;
};
constinit std::atomic<const HandlerBefore*> handler_before{nullptr};

[[noreturn]] void end_process(int signal) {
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(signal, &standard, nullptr);
  sigset_t only;
  sigemptyset(&only);
  sigaddset(&only, signal);
  ::pthread_sigmask(SIG_UNBLOCK, &only, nullptr);
  ::raise(signal);
  std::_Exit(128 + signal);
}

void hand_on(int signal, siginfo_t* info, void* context) {
  // Two handlers that each take the other for the one before would never end.
  static constinit thread_local bool is_handing_on = false;
  const HandlerBefore* const before = handler_before.load(std::memory_order_acquire);
  if (before == nullptr || is_handing_on) end_process(signal);
  const struct sigaction& action = before->action;
  const bool has_info = (action.sa_flags & SA_SIGINFO) != 0;
  if (!has_info && action.sa_handler == SIG_IGN && info->si_code <= 0) return;  // sent; a fault can't be ignored
  if (!has_info && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)) end_process(signal);
  if ((action.sa_flags & static_cast<int>(SA_RESETHAND)) != 0) {
    struct sigaction standard {};
    standard.sa_handler = SIG_DFL;
    ::sigaction(signal, &standard, nullptr);
  }
  is_handing_on = true;
  if (has_info)
    action.sa_sigaction(signal, info, context);
  else
    action.sa_handler(signal);
  is_handing_on = false;
}

void handle_bus_error(int signal, siginfo_t* info, void* context) {
  Guard* const guard = guard_of_thread.load(std::memory_order_relaxed);
  const auto* const address = static_cast<const char*>(info->si_addr);
  const std::less<const char*> before;
  if (guard != nullptr && info->si_code > 0 && !before(address, guard->map.data()) &&
      before(address, guard->map.data() + guard->map.size())) {
    guard_of_thread.store(nullptr, std::memory_order_relaxed);
    // sigsetjmp() and siglongjmp() would do it too, with a system call for each copy.
    ::pthread_sigmask(SIG_SETMASK, &static_cast<const ucontext_t*>(context)->uc_sigmask, nullptr);
    siglongjmp(guard->back, 1);
  }
  hand_on(signal, info, context);
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == handle_bus_error;
}

}  // namespace

bool guard_copies() {
  static std::mutex one_at_a_time;
  const std::scoped_lock lock(one_at_a_time);
  struct sigaction found {};
  if (::sigaction(SIGBUS, nullptr, &found) != 0) return false;
  if (is_ours(found)) return true;
  handler_before.store(new HandlerBefore{found, handler_before.load(std::memory_order_relaxed)},
                       std::memory_order_release);
  struct sigaction ours {};
  ours.sa_sigaction = handle_bus_error;
  // The handler before gets the stack and the mask that it asked for.
  ours.sa_flags = SA_SIGINFO | (found.sa_flags & (SA_ONSTACK | SA_NODEFER));
  ours.sa_mask = found.sa_mask;
  if (::sigaction(SIGBUS, &ours, nullptr) != 0) return false;
  // UCX has a sigaction() of its own, which succeeds and changes nothing for signals that it handles.
  return ::sigaction(SIGBUS, nullptr, &found) == 0 && is_ours(found);
}

// Nothing here or below has a destructor or holds a lock: the jump passes them by.
[[gnu::noinline]] bool copy_guarded(std::span<const char> map, std::span<const char> from, char* out) noexcept {
  Guard guard;
  guard.map = map;
  if (sigsetjmp(guard.back, 0) != 0) return false;
  guard_of_thread.store(&guard, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  std::memcpy(out, from.data(), from.size());
  std::atomic_signal_fence(std::memory_order_seq_cst);
  guard_of_thread.store(nullptr, std::memory_order_relaxed);
  return true;
}

}  // namespace lamina::io
