// Copies and fills.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"
#include "errors.h"
#include "memory.h"
#include "settings.h"
#include "stream.h"

using namespace lamina_emulator;

namespace {

struct Copy {
  std::byte* to;
  size_t to_pitch;
  const std::byte* from;
  size_t from_pitch;
  size_t width, height;
};

// What the direction promises must be so, and a range on a device must lie in one allocation.
cudaError_t check_side(const void* data, size_t pitch, size_t width, size_t height, bool must_be_host,
                       bool must_be_device) {
  const bool on_device = memory().device_of(data) >= 0;
  if ((must_be_host && on_device) || (must_be_device && !on_device && !memory().is_pinned(data)))
    return cudaErrorInvalidValue;
  if (on_device && !memory().holds(data, pitch * (height - 1) + width)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

cudaError_t copy(const Copy& copy, cudaMemcpyKind kind, cudaStream_t stream, bool wait) {
  if (const cudaError_t error = usable(); error != cudaSuccess) return error;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  if (copy.width > copy.to_pitch || copy.width > copy.from_pitch) return cudaErrorInvalidPitchValue;
  if (copy.width == 0 || copy.height == 0) return cudaSuccess;
  if (copy.to == nullptr || copy.from == nullptr) return cudaErrorInvalidValue;
  const bool to_host = kind == cudaMemcpyHostToHost || kind == cudaMemcpyDeviceToHost;
  const bool from_host = kind == cudaMemcpyHostToHost || kind == cudaMemcpyHostToDevice;
  const bool any = kind == cudaMemcpyDefault;
  cudaError_t status = check_side(copy.to, copy.to_pitch, copy.width, copy.height, !any && to_host, !any && !to_host);
  if (status == cudaSuccess)
    status = check_side(copy.from, copy.from_pitch, copy.width, copy.height, !any && from_host, !any && !from_host);
  if (status != cudaSuccess) return status;
  const auto pageable = [](const void* data) { return memory().device_of(data) < 0 && !memory().is_pinned(data); };
  static const bool allows_pageable = setting("LAMINA_EMULATOR_PAGEABLE", 1) != 0;
  if (!allows_pageable && (pageable(copy.to) || pageable(copy.from))) {
    std::fprintf(stderr, "CUDA emulator: a copy of %zu bytes from or to pageable memory\n", copy.width * copy.height);
    return cudaErrorInvalidValue;
  }
  status = enqueue(stream, Work::device, [copy] {
    for (const void* side : {static_cast<const void*>(copy.to), static_cast<const void*>(copy.from)})
      if (const int device = memory().device_of(side); device >= 0) memory().open(device);
    for (size_t row = 0; row < copy.height; ++row)
      std::memmove(copy.to + row * copy.to_pitch, copy.from + row * copy.from_pitch, copy.width);
    for (const void* side : {static_cast<const void*>(copy.to), static_cast<const void*>(copy.from)})
      if (const int device = memory().device_of(side); device >= 0) memory().close(device);
  });
  if (status == cudaSuccess && (wait || pageable(copy.to) || pageable(copy.from))) status = wait_for_stream(stream);
  return status;
}

cudaError_t fill(void* data, int value, size_t count, cudaStream_t stream) {
  if (const cudaError_t error = usable(); error != cudaSuccess) return error;
  if (count == 0) return cudaSuccess;
  if (data == nullptr) return cudaErrorInvalidValue;
  if (!memory().holds(data, count) && !memory().is_pinned(data)) return cudaErrorInvalidValue;
  return enqueue(stream, Work::device, [=] {
    const int device = memory().device_of(data);
    if (device >= 0) memory().open(device);
    std::memset(data, value, count);
    if (device >= 0) memory().close(device);
  });
}

}  // namespace

cudaError_t cudaMemcpyAsync(void* dst, const void* src, size_t count, cudaMemcpyKind kind, cudaStream_t stream) {
  return remember(copy({static_cast<std::byte*>(dst), count, static_cast<const std::byte*>(src), count, count, 1}, kind,
                       stream, false));
}

cudaError_t cudaMemcpy(void* dst, const void* src, size_t count, cudaMemcpyKind kind) {
  const bool wait = kind != cudaMemcpyDeviceToDevice;
  return remember(copy({static_cast<std::byte*>(dst), count, static_cast<const std::byte*>(src), count, count, 1}, kind,
                       nullptr, wait));
}

cudaError_t cudaMemcpy2DAsync(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  return remember(
      copy({static_cast<std::byte*>(dst), dpitch, static_cast<const std::byte*>(src), spitch, width, height}, kind,
           stream, false));
}

cudaError_t cudaMemsetAsync(void* devPtr, int value, size_t count, cudaStream_t stream) {
  return remember(fill(devPtr, value, count, stream));
}

cudaError_t cudaMemset(void* devPtr, int value, size_t count) {
  return remember(fill(devPtr, value, count, nullptr));
}
