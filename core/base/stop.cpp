#include "core/base/stop.h"

#include <atomic>
#include <csignal>
#include <cstring>

namespace lamina::stop {
namespace {

// All that a signal handler touches: one pointer, written once.
std::atomic<const char*> first_reason{nullptr};
static_assert(std::atomic<const char*>::is_always_lock_free);

void on_signal(int signal) {
  request(signal == SIGUSR1 ? "SIGUSR1" : signal == SIGINT ? "SIGINT" : "SIGTERM");
}

}  // namespace

void catch_signals(bool interrupt_too) {
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // a signal must not make a library's read or write fail
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGUSR1, &action, nullptr);
  if (interrupt_too) sigaction(SIGINT, &action, nullptr);
}

bool requested() noexcept {
  return first_reason.load(std::memory_order_relaxed) != nullptr;
}

std::string reason() {
  const char* why = first_reason.load(std::memory_order_relaxed);
  return why ? why : "";
}

void request(const char* why) noexcept {
  const char* none = nullptr;
  first_reason.compare_exchange_strong(none, why, std::memory_order_relaxed);
}

void reset() noexcept {
  first_reason.store(nullptr, std::memory_order_relaxed);
}

void check() {
  if (requested()) throw Stopped(reason());
}

}  // namespace lamina::stop
