#include "trainer/step/peak_rate.h"

#include <algorithm>

#include "core/base/clock.h"
#include "core/device/buffer.h"
#include "core/device/cpu/parallel_for.h"
#include "core/ops/matmul/matmul.h"
#include "core/tensor/arena.h"
#include "core/tensor/host_copy.h"

namespace lamina {
namespace {

DType dtype_of_precision(Precision precision) {
  switch (precision) {
    case Precision::bf16:
      return DType::bf16;
    case Precision::fp32:
      return DType::f32;
    case Precision::fp64:
      return DType::f64;
  }
  return DType::f32;
}

void fill(const TensorView& x) {  // neither zeros nor denormals, which some units are quicker or slower with
  Stream stream(x.device);
  HostRoom room(x, stream);
  cpu::parallel_for(x.num_elements(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) set_element(room.view(), i, 0.25 + 0.5 * static_cast<double>(i % 7));
  });
  room.upload();
  stream.synchronize();
}

// Seconds of what only this thread does: its own CPU time, which says nothing of who else uses the cores. Of a GPU the time that
// passes.
double now(const Device& device) {
  static const Clock::time_point start = Clock::now();
  return device.kind == DeviceKind::cuda ? seconds_since(start) : thread_cpu_seconds();
}

class Product {
 public:
  Product(int64_t size, DType dtype, ops::OpContext& ctx)
      : size_(size),
        ctx_(ctx),
        memory_(3 * size * size * size_of(accumulation_dtype(dtype)), ctx.stream.device(), nullptr, "peak rate") {
    char* at = static_cast<char*>(memory_.data());
    const int64_t bytes = size * size * size_of(accumulation_dtype(dtype));
    const Device device = ctx.stream.device();
    a_ = TensorView(at, dtype, {size, size}, device);
    b_ = TensorView(at + bytes, dtype, {size, size}, device);
    c_ = TensorView(at + 2 * bytes, dtype, {size, size}, device);
    fill(a_);
    fill(b_);
  }

  double run() {  // seconds
    const double begin = now(ctx_.stream.device());
    ops::matmul(ctx_, {a_, b_.transposed(), c_, ops::GradMode::overwrite});
    ctx_.stream.synchronize();
    ctx_.scratch.reset();
    return now(ctx_.stream.device()) - begin;
  }
  double gflops(double seconds) const {
    const auto n = static_cast<double>(size_);
    return 2 * n * n * n / seconds / 1e9;
  }

 private:
  int64_t size_;
  ops::OpContext& ctx_;
  Buffer memory_;
  TensorView a_, b_, c_;
};

// Of a GPU, or of this thread.
double measure(DType dtype, Stream& stream, const ops::Bf16Products& products) {
  constexpr double budget = 0.25, longest = 0.03;  // seconds: of everything; of one product
  const Device device = stream.device();
  const int64_t largest = device.kind == DeviceKind::cuda ? 8192 : 1024;
  constexpr int tries = 5;  // the first one makes the kernel
  Arena scratch(device, nullptr, "peak rate");
  ops::RefusalLog refusals;
  ops::OpContext ctx{stream, scratch, refusals, ops::Backend::fastest, products};

  const double begin = now(device);
  const Clock::time_point start = Clock::now();
  const auto spent = [&] {
    return std::max(now(device) - begin, seconds_since(start) / 4);
  };  // a crowded core: a second
  double best = 0;
  for (int64_t size = 128;; size *= 2) {
    Product product(size, dtype, ctx);
    double quickest = product.run();
    for (int i = 1; i < tries && spent() + quickest < budget; ++i) quickest = std::min(quickest, product.run());
    const double next = 8 * quickest;  // of a matrix twice as large
    const bool grows = size < largest && next < longest && spent() + next < budget;
    while (!grows && spent() + quickest < budget) quickest = std::min(quickest, product.run());
    best = std::max(best, product.gflops(quickest));
    if (!grows) return best;
  }
}

}  // namespace

double measure_peak_gflops(Precision precision, Stream& stream, const ops::Bf16Products& products) {
  const DType dtype = dtype_of_precision(precision);
  if (stream.device().kind == DeviceKind::cuda) return measure(dtype, stream, products);
  // Each thread on its own, all at the same time, as they compute: they share the caches, the memory and the power.
  double sum = 0;
#pragma omp parallel reduction(+ : sum)
  {
    Stream own;
    sum += measure(dtype, own, products);
  }
  return sum;
}

std::string mfu_text(double mfu, bool is_measured) {
  if (mfu <= 1) return fmt::format("MFU {:.0f} %", 100 * mfu);
  return fmt::format("MFU >100 % ({})", is_measured ? "peak measured too low" : "logging.peak_gflops is too low");
}

}  // namespace lamina
