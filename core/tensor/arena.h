// Scratch and activations: a bump allocator. The first step takes what it needs, slab by slab; settle() then joins the slabs
// into one of the peak's size, so later steps of the same shape allocate nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/device/buffer.h"
#include "core/tensor/view.h"

namespace lamina {

class Arena {
 public:
  // `ledger` may be null; when given it must outlive the arena.
  Arena(Device device, MemoryLedger* ledger, std::string purpose);

  TensorView take(DType dtype, const Shape& shape);  // uninitialised, 64-byte aligned; valid until released

  struct Mark {
    size_t slab;
    int64_t used;
    int64_t in_use;
  };
  Mark mark() const;
  void release(const Mark& mark);  // forgets everything taken since; last in, first out
  void reset();                    // forgets everything; frees nothing, so it never waits for a GPU
  // Forgets everything and joins the slabs. Between steps, when no work on the device is left: freeing a GPU's memory waits for all
  // that it does, which in a step may be a message from a rank that waits for one of ours.
  void settle();
  bool is_settled() const { return slabs_.size() <= 1; }

  int64_t used_bytes() const { return in_use_; }
  int64_t peak_bytes() const { return peak_; }
  int64_t capacity_bytes() const;

 private:
  struct Slab {
    Buffer buffer;
    int64_t used = 0;
  };

  Device device_;
  MemoryLedger* ledger_;
  std::string purpose_;
  std::vector<Slab> slabs_;
  size_t current_ = 0;
  int64_t in_use_ = 0;
  int64_t peak_ = 0;
};

// Releases on scope exit what was taken from the arena since construction.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace lamina
