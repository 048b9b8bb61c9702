#include "crash.h"

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>

#include "block.h"
#include "memory.h"

namespace lamina_emulator {
namespace {

struct sigaction before_segv, before_ill, before_bus;

std::string story_of(int signal, const void* address) {
  char at[32];
  std::snprintf(at, sizeof(at), "%p", address);
  const bool on_device = memory().device_of(address) >= 0;
  const BlockRunner* const runner = current_runner();
  if (runner == nullptr) {
    if (signal != SIGSEGV || !on_device) return {};
    return std::string("host code touched device memory at ") + at + " (" + memory().describe(address) + ")";
  }
  if (signal == SIGILL)
    return runner->who() + ": a misaligned access, an index out of bounds or another undefined operation";
  if (runner->overflowed_at(address))
    return runner->who() + ": its local variables need more stack than the emulator has";
  if (on_device) return runner->who() + ": illegal access at " + at + " (" + memory().describe(address) + ")";
  // x86 does not tell the address of a misaligned access.
  return runner->who() + ": illegal access at " + at + (address == nullptr ? " (null, or a misaligned access)" : "");
}

void handle(int signal, siginfo_t* info, void*) {
  const std::string story = story_of(signal, info->si_addr);
  if (story.empty()) {  // not ours: as if we had not been here
    const struct sigaction& before = signal == SIGSEGV ? before_segv : signal == SIGBUS ? before_bus : before_ill;
    sigaction(signal, &before, nullptr);
    return;
  }
  std::fprintf(stderr, "CUDA emulator: %s\n", story.c_str());
  std::abort();
}

}  // namespace

void watch_for_crashes() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGILL, &action, &before_ill);
    sigaction(SIGBUS, &action, &before_bus);
  });
}

void give_signal_stack() {
  constexpr size_t num_bytes = 64 << 10;
  static thread_local std::unique_ptr<std::byte[]> stack;
  stack_t given{};  // the address sanitizer gives threads one, which it takes back itself
  sigaltstack(nullptr, &given);
  if (stack || (given.ss_flags & SS_DISABLE) == 0) return;
  stack = std::make_unique<std::byte[]>(num_bytes);
  stack_t description{};
  description.ss_sp = stack.get();
  description.ss_size = num_bytes;
  sigaltstack(&description, nullptr);
}

}  // namespace lamina_emulator
