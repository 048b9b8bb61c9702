#include "core/ops/elementwise/implementations.h"

#include <algorithm>

#include "core/ops/elementwise/kernels.h"
#include "core/ops/gpu/operands.h"
#include "core/ops/rows.h"
#include "core/ops/sum_order.h"
#include "core/tensor/host_copy.h"

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
  for (const TensorView& x : args.xs) {
    if (const char* reason = refuses_fp64({&x})) return reason;
  }
  return nullptr;
}
void sum_squares(OpContext& ctx, const SumSquares& args) {
  int64_t num_blocks = 0;
  for (const TensorView& x : args.xs) num_blocks += num_sum_blocks(x.num_elements());
  std::fill(args.results.begin(), args.results.end(), 0.0);
  if (num_blocks == 0) return;
  const TensorView block_sums = ctx.scratch.take(DType::f64, {num_blocks});
  SquareBlocksParams p{};
  p.sums = block_sums.as<double>();
  const auto launch_those = [&] {
    launch_square_blocks(p, stream_of(ctx));
    p.sums += p.first_block[p.num_tensors];
    p.num_tensors = 0;
  };
  for (const TensorView& x : args.xs) {
    if (x.num_elements() == 0) continue;
    if (p.num_tensors == SquareBlocksParams::most) launch_those();
    const int tensor = p.num_tensors++;
    p.tensors[tensor] = flat(x);
    p.counts[tensor] = x.num_elements();
    p.first_block[tensor + 1] = p.first_block[tensor] + static_cast<int>(num_sum_blocks(x.num_elements()));
  }
  launch_those();
  const HostCopy found(block_sums, ctx.stream);
  const auto* sum = found->as<double>();
  for (size_t i = 0; i < args.xs.size(); ++i)
    for (int64_t b = 0; b < num_sum_blocks(args.xs[i].num_elements()); ++b) args.results[i] += *sum++;
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
