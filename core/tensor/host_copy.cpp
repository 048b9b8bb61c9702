#include "core/tensor/host_copy.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/device/cuda_device.h"

namespace lamina {

void copy_bytes(void* to, const void* from, int64_t num_bytes, Stream& stream) {
  if (num_bytes == 0) return;
  if (stream.device().kind == DeviceKind::cpu)
    std::memcpy(to, from, static_cast<size_t>(num_bytes));
  else
    cuda::copy(to, from, num_bytes, stream);
}

void upload(const void* from, const TensorView& target, Stream& stream) {
  LAMINA_CHECK(target.is_contiguous(), "{} is not contiguous", target.to_string());
  if (target.num_elements() == 0) return;
  HostRoom room(target, stream);
  std::memcpy(room.view().data, from, static_cast<size_t>(target.num_bytes()));
  room.upload();
}

HostCopy::HostCopy(const TensorView& view, Stream& stream) : view_(view) {
  if (view.device.kind == DeviceKind::cpu) return;
  LAMINA_CHECK(view.is_contiguous(), "{} is not contiguous", view.to_string());
  memory_ = Staging(StagingPool::of(stream), view.num_bytes(), stream);
  memory_.copy(memory_.data(), view.data, view.num_bytes(), stream);
  stream.synchronize();
  view_ = TensorView(memory_.data(), view.dtype, view.shape);
}

HostCopy::HostCopy(const TensorView& view) : view_(view) {
  if (view.device.kind == DeviceKind::cpu) return;
  Stream stream(view.device);
  *this = HostCopy(view, stream);
}

TensorView staged_values(const TensorView& view, Buffer& staging) {
  if (view.device.kind == DeviceKind::cpu) return view;
  LAMINA_CHECK(view.is_contiguous(), "{} is not contiguous", view.to_string());
  if (staging.num_bytes() < view.num_bytes())
    staging = Buffer::staging(view.num_bytes(), view.device, nullptr, "staging");
  Stream stream(view.device);
  copy_bytes(staging.data(), view.data, view.num_bytes(), stream);
  stream.synchronize();
  return {staging.data(), view.dtype, view.shape};
}

HostRoom::HostRoom(const TensorView& target, Stream& stream) : target_(target), stream_(stream), view_(target) {
  if (target.device.kind == DeviceKind::cpu) return;
  LAMINA_CHECK(target.is_contiguous(), "{} is not contiguous", target.to_string());
  memory_ = Staging(StagingPool::of(stream), target.num_bytes(), stream);
  view_ = TensorView(memory_.data(), target.dtype, target.shape);
}

void HostRoom::upload() {
  if (target_.device.kind != DeviceKind::cpu) memory_.copy(target_.data, view_.data, target_.num_bytes(), stream_);
}

namespace {

// Whether all bits of the exponent are set in any of the values; blocks, so that the loop over one has no way out and is vectorised.
template <class Bits, class Value>
std::optional<int64_t> first_with_exponent(const Value* values, int64_t count, Bits exponent) {
  constexpr int64_t block = 4096;
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t end = std::min(count, begin + block);
    Bits found = 0;
    for (int64_t i = begin; i < end; ++i)
      found |= static_cast<Bits>((std::bit_cast<Bits>(values[i]) & exponent) == exponent);
    if (found == 0) continue;
    for (int64_t i = begin; i < end; ++i)
      if ((std::bit_cast<Bits>(values[i]) & exponent) == exponent) return i;
  }
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> first_non_finite(const TensorView& host) {
  LAMINA_CHECK(host.is_contiguous(), "{} is not contiguous", host.to_string());
  const int64_t count = host.num_elements();
  switch (host.dtype) {
    case DType::bf16:
      return first_with_exponent<uint16_t>(host.as<bf16>(), count, 0x7f80);
    case DType::f32:
      return first_with_exponent<uint32_t>(host.as<float>(), count, 0x7f800000);
    case DType::f64:
      return first_with_exponent<uint64_t>(host.as<double>(), count, 0x7ff0000000000000);
    case DType::i32:
      break;
  }
  return std::nullopt;
}

double element_of(const TensorView& host, int64_t offset) {
  switch (host.dtype) {
    case DType::bf16:
      return static_cast<double>(host.as<bf16>()[offset]);
    case DType::f32:
      return static_cast<double>(host.as<float>()[offset]);
    case DType::f64:
      return host.as<double>()[offset];
    case DType::i32:
      return host.as<int32_t>()[offset];
  }
  return 0;
}

void set_element(const TensorView& host, int64_t offset, double value) {
  switch (host.dtype) {
    case DType::bf16:
      host.as<bf16>()[offset] = bf16(static_cast<float>(value));
      return;
    case DType::f32:
      host.as<float>()[offset] = static_cast<float>(value);
      return;
    case DType::f64:
      host.as<double>()[offset] = value;
      return;
    case DType::i32:
      host.as<int32_t>()[offset] = static_cast<int32_t>(value);
      return;
  }
}

}  // namespace lamina
