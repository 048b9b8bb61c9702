// What the host pays for a GPU, in microseconds: a launch, a copy of four bytes to the host, and how long after the GPU has finished a
// wait returns, by how long it waited.
//   bench_gpu_launch [--small]     --small: few and short ones, for an emulated device
#include <chrono>
#include <cstring>

#include "bench/gpu_support.h"

namespace lamina {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

struct Spread {
  double median, worst;  // the 95th of a hundred
};
Spread spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values[values.size() * 95 / 100]};
}

void launches(bench::Gpu& gpu, int count) {
  Stream& stream = gpu.ctx().stream;
  const TensorView one = gpu.room(DType::f32, {1});
  std::vector<double> host, device;
  for (int round = 0; round < 9; ++round) {
    Event begin, end;
    stream.synchronize();
    begin.record(stream);
    const auto start = Clock::now();
    for (int i = 0; i < count; ++i) ops::fill(gpu.ctx(), {one, 1.0});
    host.push_back(microseconds(Clock::now() - start) / count);
    end.record(stream);
    stream.synchronize();
    device.push_back(1e6 * end.seconds_since(begin) / count);
  }
  std::printf("launch_host_us %.3f\nlaunch_device_us %.3f\n", spread(host).median, spread(device).median);
}

void copies(bench::Gpu& gpu, int count) {
  const TensorView one = gpu.room(DType::f32, {1});
  std::vector<double> times;
  for (int i = 0; i < count; ++i) {
    ops::fill(gpu.ctx(), {one, 1.0});
    const auto start = Clock::now();
    const HostCopy copy(one, gpu.ctx().stream);
    times.push_back(microseconds(Clock::now() - start));
  }
  const Spread all = spread(times);
  std::printf("copy_to_host_us %.1f\ncopy_to_host_95_us %.1f\n", all.median, all.worst);
}

// Work of so many bytes: what the host's clock saw from the launch to the wait's return, less what the GPU took.
void waits(bench::Gpu& gpu, int64_t num_bytes, int count) {
  Stream& stream = gpu.ctx().stream;
  const TensorView room = gpu.room(DType::f32, {num_bytes / 4});
  std::vector<double> work, over;
  for (int i = 0; i < count; ++i) {
    Event begin, end;
    stream.synchronize();
    const auto start = Clock::now();
    begin.record(stream);
    ops::fill(gpu.ctx(), {room, 1.0});
    end.record(stream);
    stream.synchronize();
    const double seen = microseconds(Clock::now() - start), took = 1e6 * end.seconds_since(begin);
    work.push_back(took);
    over.push_back(seen - took);
  }
  const Spread all = spread(over);
  std::printf("work_us %10.1f  wait_over_us %8.1f  wait_over_95_us %8.1f\n", spread(work).median, all.median,
              all.worst);
}

void run(bool small) {
  bench::Gpu gpu;
  launches(gpu, small ? 20 : 2000);
  copies(gpu, small ? 20 : 500);
  for (const int64_t num_bytes : {int64_t{1} << 12, int64_t{1} << 26, int64_t{1} << 30, int64_t{1} << 34}) {
    waits(gpu, small ? std::min<int64_t>(num_bytes, 1 << 14) : num_bytes, small ? 20 : 100);
    gpu.forget();
  }
}

}  // namespace
}  // namespace lamina

int main(int argc, char** argv) {
  const bool small = argc == 2 && std::strcmp(argv[1], "--small") == 0;
  if (argc > 1 && !small) {
    std::fprintf(stderr, "bench_gpu_launch: found '%s', expected --small or nothing\n", argv[1]);
    return 1;
  }
  if (const std::string why = lamina::cuda::why_none(); !why.empty()) {
    std::fprintf(stderr, "bench_gpu_launch: %s\n", why.c_str());
    return 1;
  }
  lamina::run(small);
  return 0;
}
