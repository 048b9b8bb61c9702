#include "core/device/buffer.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/base/error.h"

namespace lamina {

Buffer::Buffer(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose)
    : num_bytes_(num_bytes), device_(device), ledger_(ledger), purpose_(std::move(purpose)) {
  LAMINA_CHECK(num_bytes >= 0, "{} bytes for {}", num_bytes, purpose_);
  LAMINA_CHECK(device.kind == DeviceKind::cpu, "this build has no device memory other than the host's");
  if (num_bytes == 0) return;
  constexpr int64_t alignment = 64;
  const int64_t rounded = (num_bytes + alignment - 1) / alignment * alignment;
  data_ = std::aligned_alloc(alignment, static_cast<size_t>(rounded));
  if (data_ == nullptr)
    throw Error("out of memory: {:.1f} MiB for {}", static_cast<double>(num_bytes) / (1024.0 * 1024.0), purpose_);
  std::memset(data_, 0, static_cast<size_t>(rounded));
  if (ledger_ != nullptr) ledger_->add(purpose_, num_bytes_);
}

Buffer::~Buffer() {
  release();
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)),
      device_(other.device_),
      ledger_(std::exchange(other.ledger_, nullptr)),
      purpose_(std::move(other.purpose_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
    device_ = other.device_;
    ledger_ = std::exchange(other.ledger_, nullptr);
    purpose_ = std::move(other.purpose_);
  }
  return *this;
}

void Buffer::release() {
  if (data_ == nullptr) return;
  if (ledger_ != nullptr) ledger_->remove(purpose_, num_bytes_);
  std::free(data_);
  data_ = nullptr;
}

}  // namespace lamina
