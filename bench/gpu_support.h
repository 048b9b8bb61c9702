// What the benchmarks of GPUs share: operands on the device, times by the device's clock, the copy bandwidth and the matrix rate
// that everything is held against.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "core/base/rng.h"
#include "core/device/cuda_device.h"
#include "core/ops/elementwise/elementwise.h"
#include "core/ops/matmul/matmul.h"
#include "core/tensor/host_copy.h"

namespace lamina::bench {

class Gpu {
 public:
  Gpu() : stream_(device_), scratch_(device_, nullptr, "scratch"), ctx_{stream_, scratch_, refusals_} {}

  Device device() const { return device_; }
  ops::OpContext& ctx() { return ctx_; }

  // Uniform in [low, high): a small random tile again and again, so that gigabytes are there in no time.
  TensorView make(DType dtype, const Shape& shape, double low, double high) {
    TensorView view = room(dtype, shape);
    const int64_t total = view.num_elements(), tile = std::min<int64_t>(total, 1 << 20);
    const TensorView flat = view.reshaped({total});
    HostRoom values(flat.slice(0, 0, tile), stream_);
    const CounterRng rng(1, static_cast<uint64_t>(total));
    for (int64_t i = 0; i < tile; ++i)
      set_element(values.view(), i, low + (high - low) * rng.uniform(static_cast<uint64_t>(i)));
    values.upload();
    for (int64_t at = tile; at < total; at += tile) {
      const int64_t count = std::min(tile, total - at);
      copy_bytes(flat.slice(0, at, at + count).data, flat.data, count * size_of(dtype), stream_);
    }
    stream_.synchronize();
    return view;
  }
  TensorView room(DType dtype, const Shape& shape) {
    buffers_.emplace_back(shape.num_elements() * size_of(dtype), device_, nullptr, "bench");
    return {buffers_.back().data(), dtype, shape, device_};
  }

  // Seconds of one call, the median of `repeats` after a warm-up, by the device's clock.
  double seconds(const std::function<void()>& call, int repeats = 9) {
    call();
    call();
    std::vector<double> times;
    for (int i = 0; i < repeats; ++i) {
      Event begin, end;
      begin.record(stream_);
      call();
      end.record(stream_);
      stream_.synchronize();
      times.push_back(end.seconds_since(begin));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  // Bytes read and written per second by a copy of `num_bytes`: several times the second-level cache.
  double copy_bandwidth(int64_t num_bytes = int64_t{1} << 30) {
    const TensorView from = room(DType::f32, {num_bytes / 4}), to = room(DType::f32, {num_bytes / 4});
    const double time = seconds([&] { copy_bytes(to.data, from.data, num_bytes, stream_); });
    return 2.0 * static_cast<double>(num_bytes) / time;
  }
  double matmul_rate(int64_t size = 8192) {
    const TensorView a = make(DType::bf16, {size, size}, -1, 1), b = make(DType::bf16, {size, size}, -1, 1);
    const TensorView c = room(DType::bf16, {size, size});
    const double time = seconds([&] { ops::matmul(ctx_, {a, b.transposed(), c, ops::GradMode::overwrite}); });
    return 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size) / time;
  }
  void forget() { buffers_.clear(); }  // all operands

 private:
  Device device_{DeviceKind::cuda, 0};
  Stream stream_;
  Arena scratch_;
  ops::RefusalLog refusals_;
  ops::OpContext ctx_;
  std::vector<Buffer> buffers_;
};

}  // namespace lamina::bench
