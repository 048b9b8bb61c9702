// Owns bytes, of the host or of a GPU. Move-only; a moved-from buffer is empty. Memory is aligned to 64 bytes and starts as
// zeros.
#pragma once

#include <cstdint>
#include <string>

#include "core/device/device.h"
#include "core/device/memory_ledger.h"

namespace lamina {

class Buffer {
 public:
  Buffer() = default;
  // `ledger` may be null; when given it must outlive the buffer.
  Buffer(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose);
  // The host's memory, in which copies from and to `device` run beside other work (page-locked when that is a GPU).
  static Buffer staging(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  int64_t num_bytes() const { return num_bytes_; }
  Device device() const { return device_; }

 private:
  Buffer(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose, int pinned_by);
  void allocate();
  void release();

  void* data_ = nullptr;
  int64_t num_bytes_ = 0;
  Device device_;
  int pinned_by_ = -1;  // the GPU for which the host's memory is page-locked
  MemoryLedger* ledger_ = nullptr;
  std::string purpose_;
};

}  // namespace lamina
