// Host memory through which copies from and to a GPU go. It is page-locked: with any other the driver blocks the host, which then
// doesn't notice that a peer has died. It is kept from copy to copy, since locking pages takes long.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/device/buffer.h"
#include "core/device/stream.h"

namespace lamina {

// Thread-safe. On the CPU it is plain memory.
class StagingPool {
 public:
  // A piece may come back while its last copy still runs.
  struct Piece {
    Buffer memory;
    Event released;  // that copy has finished
  };

  struct Limits {
    int64_t largest_kept;  // bytes of a piece; larger ones are freed when they come back
    int max_in_flight;     // pieces of a size whose copies still run: take() waits for one rather than make another
  };
  // `ledger` may be null; when given it must outlive the pool.
  StagingPool(MemoryLedger* ledger, std::string purpose, Limits limits)
      : ledger_(ledger), purpose_(std::move(purpose)), limits_(limits) {}

  Piece take(int64_t num_bytes, Stream& stream);  // at least; for copies on streams of that device
  void give_back(Piece piece);

  // Of the stream's device, for HostCopy and HostRoom. Never freed: that would wait for all that the device does.
  static const std::shared_ptr<StagingPool>& of(Stream& stream);

 private:
  MemoryLedger* ledger_;
  std::string purpose_;
  Limits limits_;
  std::vector<Piece> free_;  // oldest first
};

// A piece on loan. Move-only.
class Staging {
 public:
  Staging() = default;
  Staging(std::shared_ptr<StagingPool> pool, int64_t num_bytes, Stream& stream)
      : pool_(std::move(pool)), piece_(pool_->take(num_bytes, stream)) {}
  ~Staging() {
    if (pool_) pool_->give_back(std::move(piece_));
  }
  Staging(Staging&& other) noexcept : pool_(std::move(other.pool_)), piece_(std::move(other.piece_)) {}
  Staging& operator=(Staging&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(piece_, other.piece_);
    return *this;
  }

  void* data() const { return piece_.memory.data(); }
  // In stream order; one end is this piece, which may be used again once the copy is through.
  void copy(void* to, const void* from, int64_t num_bytes, Stream& stream);

 private:
  std::shared_ptr<StagingPool> pool_;
  StagingPool::Piece piece_;
};

}  // namespace lamina
