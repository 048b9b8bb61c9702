#include "core/ops/cuda/elementwise.h"

#include <vector>

#include "core/device/cuda_device.h"
#include "core/ops/cuda/elementwise_kernels.h"
#include "core/ops/cuda/operands.h"
#include "core/ops/ref/rows.h"
#include "core/ops/sum_order.h"

namespace lamina::ops::cuda {
namespace {

Flat flat(const TensorView& x) {
  return {x.data, x.dtype};
}

}  // namespace

const char* add_refuses(const Add& args) {
  return refuses_fp64({&args.a, &args.b, &args.y});
}
void add(OpContext& ctx, const Add& args) {
  launch_add({flat(args.a), flat(args.b), flat(args.y), args.y.num_elements()}, stream_of(ctx));
}

const char* cast_refuses(const Cast& args) {
  return refuses_fp64({&args.x, &args.y});
}
void cast(OpContext& ctx, const Cast& args) {
  launch_cast({flat(args.x), flat(args.y), args.y.num_elements()}, stream_of(ctx));
}

const char* sum_squares_refuses(const SumSquares& args) {
  return refuses_fp64({&args.x});
}
void sum_squares(OpContext& ctx, const SumSquares& args) {
  const int64_t count = args.x.num_elements(), num_blocks = (count + sum_block - 1) / sum_block;
  std::vector<double> sums(static_cast<size_t>(num_blocks));
  if (num_blocks > 0) {
    auto* const device_sums = ctx.scratch.take(DType::f64, {num_blocks}).as<double>();
    launch_square_blocks({flat(args.x), device_sums, count}, stream_of(ctx));
    lamina::cuda::copy(sums.data(), device_sums, num_blocks * size_of(DType::f64), ctx.stream);
    ctx.stream.synchronize();
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  *args.result = total;
}

const char* fill_refuses(const Fill& args) {
  return refuses_fp64({&args.x});
}
void fill(OpContext& ctx, const Fill& args) {
  // Rounded once: a bf16 is not what a rounded fp32 rounds to.
  const float value = args.x.dtype == DType::bf16 ? static_cast<float>(ref::round_to<bf16>(args.value))
                                                  : static_cast<float>(args.value);
  launch_fill({flat(args.x), value, args.x.num_elements()}, stream_of(ctx));
}

const char* scale_refuses(const Scale& args) {
  return refuses_fp64({&args.x});
}
void scale(OpContext& ctx, const Scale& args) {
  launch_scale({flat(args.x), static_cast<float>(args.factor), args.x.num_elements()}, stream_of(ctx));
}

}  // namespace lamina::ops::cuda
