#include "core/device/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/device/cuda_device.h"

namespace lamina {

Buffer::Buffer(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose)
    : Buffer(num_bytes, device, ledger, std::move(purpose), -1) {}

Buffer::Buffer(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose, int pinned_by)
    : num_bytes_(num_bytes), device_(device), pinned_by_(pinned_by), ledger_(ledger), purpose_(std::move(purpose)) {
  LAMINA_CHECK(num_bytes >= 0, "{} bytes for {}", num_bytes, purpose_);
  if (num_bytes == 0) return;
  allocate();
  if (ledger_ != nullptr) ledger_->add(purpose_, num_bytes_);
}

Buffer Buffer::staging(int64_t num_bytes, Device device, MemoryLedger* ledger, std::string purpose) {
  return {num_bytes, Device{}, ledger, std::move(purpose), device.kind == DeviceKind::cuda ? device.index : -1};
}

void Buffer::allocate() {
  if (device_.kind == DeviceKind::cuda) {
    data_ = cuda::allocate(device_.index, num_bytes_, purpose_);
    cuda::fill_zero_now(device_.index, data_, num_bytes_);
    return;
  }
  // Rows that lie kilobytes apart would each need a page's translation; large pages, where the system grants them, hold hundreds.
  constexpr int64_t large_page = int64_t{2} << 20;
  const bool is_large = num_bytes_ >= 2 * large_page;
  const int64_t alignment = is_large ? large_page : 64;
  const int64_t rounded = (num_bytes_ + alignment - 1) / alignment * alignment;
  data_ = pinned_by_ >= 0 ? cuda::allocate_pinned(pinned_by_, rounded, purpose_)
                          : std::aligned_alloc(alignment, static_cast<size_t>(rounded));
  if (data_ == nullptr)
    throw Error("out of memory: {:.1f} MiB for {}", static_cast<double>(num_bytes_) / (1024.0 * 1024.0), purpose_);
#ifdef MADV_HUGEPAGE
  if (is_large && pinned_by_ < 0) madvise(data_, static_cast<size_t>(rounded), MADV_HUGEPAGE);  // advice: may fail
#endif
  std::memset(data_, 0, static_cast<size_t>(rounded));
}

Buffer::~Buffer() {
  release();
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)),
      device_(other.device_),
      pinned_by_(other.pinned_by_),
      ledger_(std::exchange(other.ledger_, nullptr)),
      purpose_(std::move(other.purpose_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
    device_ = other.device_;
    pinned_by_ = other.pinned_by_;
    ledger_ = std::exchange(other.ledger_, nullptr);
    purpose_ = std::move(other.purpose_);
  }
  return *this;
}

void Buffer::release() {
  if (data_ == nullptr) return;
  if (ledger_ != nullptr) ledger_->remove(purpose_, num_bytes_);
  if (device_.kind == DeviceKind::cuda) {
    cuda::deallocate(device_.index, data_);
  } else if (pinned_by_ >= 0) {
    cuda::deallocate_pinned(pinned_by_, data_);
  } else {
    std::free(data_);
  }
  data_ = nullptr;
}

}  // namespace lamina
