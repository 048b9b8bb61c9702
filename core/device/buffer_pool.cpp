#include "core/device/buffer_pool.h"

#include <algorithm>
#include <utility>

#include "core/base/error.h"

namespace lamina {

BufferPool::BufferPool(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose)
    : num_bytes_(num_bytes), device_(device), ledger_(ledger), purpose_(std::move(purpose)) {}

BufferPool::BufferPool(BufferPool&& other) noexcept
    : num_bytes_(other.num_bytes_),
      device_(other.device_),
      ledger_(other.ledger_),
      purpose_(std::move(other.purpose_)),
      buffers_(std::exchange(other.buffers_, {})),
      free_(std::exchange(other.free_, {})) {}

BufferPool& BufferPool::operator=(BufferPool&& other) noexcept {
  if (this != &other) {
    num_bytes_ = other.num_bytes_;
    device_ = other.device_;
    ledger_ = other.ledger_;
    purpose_ = std::move(other.purpose_);
    buffers_ = std::exchange(other.buffers_, {});
    free_ = std::exchange(other.free_, {});
  }
  return *this;
}

void* BufferPool::take() {
  if (free_.empty()) {
    buffers_.emplace_back(num_bytes_, device_, ledger_, purpose_);
    return buffers_.back().data();
  }
  void* data = free_.back();
  free_.pop_back();
  return data;
}

void BufferPool::give(void* data) {
  const bool ours = std::any_of(buffers_.begin(), buffers_.end(), [&](const Buffer& b) { return b.data() == data; });
  LAMINA_CHECK(ours && std::find(free_.begin(), free_.end(), data) == free_.end(), "{}: a buffer that is not out",
               purpose_);
  free_.push_back(data);
}

}  // namespace lamina
