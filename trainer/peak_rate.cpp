#include "trainer/peak_rate.h"

#include <algorithm>
#include <chrono>

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "trainer/engine.h"

namespace lamina {

double measure_peak_gflops(Precision precision) {
  using Clock = std::chrono::steady_clock;
  // float64 runs the plain loops of the reference: a small product says as much and takes no longer.
  const int64_t n = precision == Precision::fp64 ? 96 : 1024;
  const DType dtype = compute_dtype(precision);
  const Device device;
  Stream stream(device);
  Arena scratch(device, nullptr, "scratch");
  ops::RefusalLog refusals;
  ops::OpContext ctx{stream, scratch, refusals, ops::Backend::fastest};
  Arena room(device, nullptr, "scratch");
  const TensorView a = room.take(dtype, {n, n}), b = room.take(dtype, {n, n}), c = room.take(dtype, {n, n});
  ops::fill(ctx, {a, 0.5});
  ops::fill(ctx, {b, 0.25});
  double best = 0;
  const auto start = Clock::now();
  do {
    const auto begin = Clock::now();
    ops::matmul(ctx, {a, b, c});
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / seconds / 1e9);
  } while (std::chrono::duration<double>(Clock::now() - start).count() < 0.3);
  return best;
}

}  // namespace lamina
