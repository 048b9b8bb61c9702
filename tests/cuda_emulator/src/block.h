// Runs the blocks of a launch: every thread a fiber, warps that meet, barriers.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"
#include "symbols.h"

namespace lamina_emulator {

struct Launch {
  const void* kernel = nullptr;
  dim3 grid, block;
  size_t shared_bytes = 0;
  std::function<void()> body;
};

// Quick and good enough for choosing who runs next.
class Chance {
 public:
  explicit Chance(uint64_t seed);
  uint32_t below(uint32_t limit);

 private:
  uint64_t state_;
};

class BlockRunner {
 public:
  BlockRunner();
  // Every block of the launch. Returns what went wrong, empty when nothing did.
  std::string run(const Launch& launch, uint64_t seed);

  // For the fiber that runs.
  void meet_in_warp(const char* name, unsigned mask, void* operand, Combine combine, Where where, bool whole);
  Votes meet_in_block(const char* name, int predicate, Where where);
  [[noreturn]] void fail(const std::string& what, Where where);
  unsigned lane() const { return running_ % 32; }
  void* shared() const { return shared_.get(); }
  bool is_in_shared(const void* address) const;
  void copy_later(void* to, const void* from, int valid_bytes, Where where);
  void commit_copies();
  void wait_for_copies(int allowed_groups);
  uint64_t num_barriers() const { return num_barriers_; }  // of the last block that ran
  std::string who() const;                                 // "thread (0,0,0) of block (1,0,0) of a kernel"
  bool overflowed_at(const void* address) const;

 private:
  struct Thread {
    Fiber* fiber = nullptr;  // null before it starts and after it has returned
    uint3 index;
    bool done = false;
    const char* waits_in = nullptr;
    unsigned mask = 0;  // of the warp's threads it waits for
    std::source_location where;
  };
  struct Meeting {  // of threads of a warp
    const char* name = nullptr;
    unsigned mask = 0, arrived = 0;
    Combine combine = nullptr;
    bool whole = false;
    std::source_location where;
    std::array<void*, 32> operands;
  };
  struct Warp {
    unsigned live = 0;
    unsigned num_meetings = 0;
    std::array<Meeting, 32> meetings;
  };
  struct Copies {  // of one thread
    struct One {
      std::byte* to;
      const std::byte* from;
      int valid_bytes;
      int group;
    };
    std::vector<One> pending;
    int num_groups = 0;
  };

  void prepare(const Launch& launch);
  void run_block(const Launch& launch);
  void abandon_block();
  void check_shared_guard(size_t shared_bytes);
  void start(unsigned thread);
  static void enter(void* runner);
  void finish();  // of the thread that runs
  void suspend(const char* name, unsigned mask, Where where);
  void make_ready(unsigned thread) { ready_[num_ready_++] = static_cast<uint16_t>(thread); }
  void complete(unsigned warp, unsigned meeting);
  void release_barrier();
  std::string stuck() const;
  std::string place() const;

  const Launch* launch_ = nullptr;
  Chance chance_{0};
  uint64_t num_barriers_ = 0;
  unsigned num_threads_ = 0, num_live_ = 0;
  unsigned running_ = 0;
  uint3 block_index_{};
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Copies> copies_;
  std::array<uint16_t, 1024> ready_{};
  unsigned num_ready_ = 0;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::string failure_;

  struct Barrier {
    const char* name = nullptr;
    std::source_location where;
    unsigned arrived = 0;
    int count = 0;
    std::vector<uint16_t> waiting;
    Votes result{};
  } barrier_;

  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> shared_;
  std::vector<SharedVariable> shared_variables_;
};

std::string text_of(Where where);
// What runs on this thread of the host; null outside kernels.
BlockRunner* current_runner();

}  // namespace lamina_emulator
