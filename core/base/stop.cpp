#include "core/base/stop.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <string_view>

#include "core/base/signals.h"

namespace lamina::stop {
namespace {

// All that a signal handler writes: one pointer, once.
std::atomic<const char*> first_reason{nullptr};
const char* on_interrupt_doing = "";  // set before the handler is
static_assert(std::atomic<const char*>::is_always_lock_free);

void on_signal(int signal) {
  request(signal == SIGUSR1 ? "SIGUSR1" : signal == SIGINT ? "SIGINT" : "SIGTERM");
}

// A step may take minutes: whoever pressed Ctrl-C learns at once that it was seen.
void on_interrupt(int signal) {
  on_signal(signal);
  const int before = errno;
  for (const std::string_view part : {std::string_view("\nSIGINT: "), std::string_view(on_interrupt_doing),
                                      std::string_view("; a second one ends it at once\n")})
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, part.data(), part.size());
  errno = before;
}

void handle(int signal, void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  ::sigaction(signal, &action, nullptr);
}

}  // namespace

void catch_signals(bool interrupt_too, const char* doing) {
  signals::move_to_own_thread();
  on_interrupt_doing = doing;
  handle(SIGTERM, on_signal, SA_RESTART);
  handle(SIGUSR1, on_signal, SA_RESTART);
  if (interrupt_too && !signals::is_ignored(SIGINT))
    handle(SIGINT, on_interrupt, SA_RESTART | static_cast<int>(SA_RESETHAND));
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
