// Scratch and activations: a bump allocator. The first step books what it needs, slab by slab; reset() then joins the
// slabs into one of the peak's size, so later steps of the same shape allocate nothing.
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
  void reset();                    // forgets everything

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
