#include "launch/machine.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "core/base/clock.h"
#include "core/device/buffer.h"
#include "core/device/cpu/parallel_for.h"
#include "core/device/cuda_device.h"
#include "core/ops/matmul/matmul.h"

namespace lamina {

// "MemTotal:  123 kB" of /proc/meminfo, in bytes.
std::optional<double> meminfo(const std::string& key) {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key + ":")) continue;
    return std::strtod(line.c_str() + key.size() + 1, nullptr) * (line.ends_with("kB") ? 1024 : 1);
  }
  return std::nullopt;
}

// The best of what fits into about half a second, after one that warms up; `work` ends when its result is there.
double best_seconds(const std::function<void()>& work) {
  work();
  double best = 1e9;
  const auto start = Clock::now();
  do {
    const auto before = Clock::now();
    work();
    best = std::min(best, seconds_since(before));
  } while (seconds_since(start) < 0.4);
  return best;
}

// 10^9 multiply-adds per second, each counted as two operations.
double matmul_gflops(Device device, DType dtype, int64_t size) {
  Stream stream(device);
  Arena scratch(device, nullptr, "measurement");
  ops::RefusalLog refusals;
  ops::OpContext ctx{stream, scratch, refusals};
  const int64_t bytes = size * size * size_of(dtype);
  const Buffer a(bytes, device, nullptr, "measurement"), b(bytes, device, nullptr, "measurement"),
      c(bytes, device, nullptr, "measurement");
  const auto view = [&](const Buffer& buffer) { return TensorView(buffer.data(), dtype, {size, size}, device); };
  const double seconds = best_seconds([&] {
    ops::matmul(ctx, {view(a), view(b).transposed(), view(c)});
    stream.synchronize();
  });
  return 2e-9 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size) / seconds;
}

// Bytes read and written per second, GB.
double copy_gbps(Device device) {
  constexpr int64_t bytes = int64_t{128} << 20;
  const Buffer from(bytes, device, nullptr, "measurement"), to(bytes, device, nullptr, "measurement");
  Stream stream(device);
  const double seconds = best_seconds([&] {
    if (device.kind == DeviceKind::cuda) {
      cuda::copy(to.data(), from.data(), bytes, stream);
      stream.synchronize();
      return;
    }
    cpu::parallel_for(bytes, 1 << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(to.data()) + begin, static_cast<char*>(from.data()) + begin,
                  static_cast<size_t>(end - begin));
    });
  });
  return 2e-9 * static_cast<double>(bytes) / seconds;
}

model::PlanDevice measure_processor(DType dtype, int num_ranks) {
  constexpr double gib = 1 << 30;
  const double copied = copy_gbps(Device());
  model::PlanDevice device;
  device.name = num_ranks == 1 ? "this machine's processor, measured"
                               : fmt::format("one of {} ranks on this machine's processor, measured", num_ranks);
  device.tflops = 1e-3 * matmul_gflops(Device(), dtype, 512) / num_ranks;
  device.memory_gib = meminfo("MemTotal").value_or(0) / gib / num_ranks;
  device.memory_gbps = copied / num_ranks;
  // A message between ranks is a copy in memory, read and written.
  device.node_gbps = device.bandwidth_gbps = copied / 2 / num_ranks;
  device.ranks_per_node = num_ranks;
  return device;
}

}  // namespace lamina
