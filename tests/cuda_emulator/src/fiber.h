// Threads of execution that switch by themselves, on stacks of their own.
#pragma once

#include <cstddef>

namespace lamina_emulator {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The next resume() runs `entry(argument)`, which must not return but call leave(true). `stagger` moves the beginning, so that
  // the stacks of many fibers don't fall on the same lines of a cache. For a fiber that is new, has left for good, or will not be
  // resumed again.
  void start(void (*entry)(void*), void* argument, size_t stagger);
  void resume();              // from the thread that owns the fiber, until the fiber leaves
  void leave(bool for_good);  // from within the fiber
  // Whether the address is in the page below the stack, which one touches who has used it up.
  bool overflowed_at(const void* address) const;

  static constexpr size_t stack_bytes = 256 << 10;

 private:
  std::byte* memory_ = nullptr;  // the page that can't be touched, then the stack
  void* own_ = nullptr;          // stack pointers, while the other side runs
  void* resumer_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  // What the address sanitizer wants to know.
  void* fake_stack_ = nullptr;
  const void* resumer_bottom_ = nullptr;
  size_t resumer_size_ = 0;

  static void run(Fiber* self);
  void arrived();
};

}  // namespace lamina_emulator
