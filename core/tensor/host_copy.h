// Values of a tensor where the host can read or write them, wherever the tensor lives.
#pragma once

#include <cstdint>
#include <optional>

#include "core/device/buffer.h"
#include "core/device/staging_pool.h"
#include "core/device/stream.h"
#include "core/tensor/view.h"

namespace lamina {

// In stream order; both ends are the stream's device's. Memory that overlaps is not allowed.
void copy_bytes(void* to, const void* from, int64_t num_bytes, Stream& stream);
// In stream order, from any memory of the host, which may be written again on return. `target` is contiguous.
void upload(const void* from, const TensorView& target, Stream& stream);

// Reads: the view itself where it is the host's, else a copy of it, for which the stream is waited for.
class HostCopy {
 public:
  HostCopy(const TensorView& view, Stream& stream);  // contiguous
  explicit HostCopy(const TensorView& view);         // of a tensor that nothing writes now
  HostCopy(HostCopy&&) noexcept = default;
  HostCopy& operator=(HostCopy&&) noexcept = default;
  const TensorView& view() const { return view_; }
  const TensorView* operator->() const { return &view_; }

 private:
  Staging memory_;
  TensorView view_;
};

// The same with memory that is kept from call to call: page-locked, grown as needed. Waits for everything on the device.
TensorView staged_values(const TensorView& view, Buffer& staging);

// Writes: room for a tensor's values. upload() takes them there, once.
class HostRoom {
 public:
  HostRoom(const TensorView& target, Stream& stream);  // contiguous
  HostRoom(HostRoom&&) noexcept = default;
  HostRoom& operator=(HostRoom&&) noexcept = default;
  const TensorView& view() const { return view_; }
  const TensorView* operator->() const { return &view_; }
  void upload();  // in stream order

 private:
  TensorView target_;
  Staging memory_;
  Stream stream_;
  TensorView view_;
};

// Index of the first value that is infinite or not a number; absent when all are finite. Contiguous, of the host.
std::optional<int64_t> first_non_finite(const TensorView& host);

// One element as a double, for tests of single values and for messages.
double element_of(const TensorView& host, int64_t offset);
void set_element(const TensorView& host, int64_t offset, double value);

}  // namespace lamina
