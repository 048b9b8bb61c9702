// Buffers of one size, handed out and taken back: what lives from one schedule action to another. Grows when more are out
// than ever before, so a steady-state step allocates nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/device/buffer.h"

namespace lamina {

class BufferPool {
 public:
  // `ledger` may be null; when given it must outlive the pool.
  BufferPool(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose);
  BufferPool(BufferPool&&) noexcept;
  BufferPool& operator=(BufferPool&&) noexcept;

  void* take();           // uninitialised, num_bytes
  void give(void* data);  // one that take() returned; LAMINA_CHECKs that it is out

  int64_t num_bytes() const { return num_bytes_; }  // of each
  int num_out() const { return static_cast<int>(buffers_.size() - free_.size()); }
  int peak_out() const { return static_cast<int>(buffers_.size()); }

 private:
  int64_t num_bytes_;
  Device device_;
  MemoryLedger* ledger_;
  std::string purpose_;
  std::vector<Buffer> buffers_;
  std::vector<void*> free_;  // the last one given is taken first: it is the warmest
};

}  // namespace lamina
