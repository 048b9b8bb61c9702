#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Keeps what a function must preserve (SysV ABI, x86-64) on the stack, saves its pointer, and continues on the other stack.
extern "C" void lamina_emulator_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl lamina_emulator_switch
.type lamina_emulator_switch, @function
lamina_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lamina_emulator_switch, .-lamina_emulator_switch
.globl lamina_emulator_begin
.type lamina_emulator_begin, @function
lamina_emulator_begin:
  movq %r12, %rdi
  callq *%r13
  ud2
.size lamina_emulator_begin, .-lamina_emulator_begin
)");
extern "C" void lamina_emulator_begin();

namespace lamina_emulator {
namespace {

constexpr size_t page = 4096;

}  // namespace

Fiber::~Fiber() {
  if (memory_ != nullptr) munmap(memory_, page + stack_bytes);
}

void Fiber::start(void (*entry)(void*), void* argument, size_t stagger) {
  if (memory_ == nullptr) {
    void* const memory = mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
      std::perror("CUDA emulator: a stack");
      std::abort();
    }
    memory_ = static_cast<std::byte*>(memory);
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory_ + page, stack_bytes);  // whoever was here before has left without returning
#endif
  entry_ = entry;
  argument_ = argument;
  // As lamina_emulator_switch leaves a stack: r15 to rbp, the return address; then aligned as at a function's entry.
  auto* const top = reinterpret_cast<void**>(memory_ + page + stack_bytes - stagger % 4032 / 64 * 64 - 64);
  void** const frame = top - 7;
  for (int i = 0; i < 6; ++i) frame[i] = nullptr;
  frame[2] = reinterpret_cast<void*>(&Fiber::run);  // r13
  frame[3] = this;                                  // r12
  frame[6] = reinterpret_cast<void*>(&lamina_emulator_begin);
  own_ = frame;
  fake_stack_ = nullptr;
}

void Fiber::run(Fiber* self) {
  self->arrived();
  self->entry_(self->argument_);
  std::abort();
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &resumer_bottom_, &resumer_size_);
#endif
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, memory_ + page, stack_bytes);
  lamina_emulator_switch(&resumer_, own_);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  lamina_emulator_switch(&resumer_, own_);
#endif
}

void Fiber::leave([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, resumer_bottom_, resumer_size_);
#endif
  lamina_emulator_switch(&own_, resumer_);
  arrived();
}

bool Fiber::overflowed_at(const void* address) const {
  const auto* const at = static_cast<const std::byte*>(address);
  return memory_ != nullptr && at >= memory_ && at < memory_ + page;
}

}  // namespace lamina_emulator
