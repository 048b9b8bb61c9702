// bf16 products through fp32, where native ones would be slower or are not there: the operands are widened, which is exact, and the
// product is fp32's. The copies cost M K + K N + M N against M K N multiplications.
#include "core/device/cpu/parallel_for.h"
#include "core/ops/matmul/implementations.h"

namespace lamina::ops::cpu {
namespace {

// An fp32 copy, transposed as the view is.
TensorView widen(OpContext& ctx, const TensorView& view) {
  const bool transposed = view.stride(1) != 1 && view.size(1) > 1;
  const TensorView lines = transposed ? view.transposed() : view;
  const int64_t length = lines.size(1), stride = lines.stride(0);
  const TensorView copy = ctx.scratch.take(DType::f32, lines.shape);
  const bf16* from = lines.as<bf16>();
  auto* to = copy.as<float>();
  lamina::cpu::parallel_for(lines.size(0), std::max<int64_t>(1, 16384 / std::max<int64_t>(1, length)),
                            [&](int64_t begin, int64_t end) {
                              for (int64_t line = begin; line < end; ++line)
                                for (int64_t i = 0; i < length; ++i)
                                  to[line * length + i] = static_cast<float>(from[line * stride + i]);
                            });
  return transposed ? copy.transposed() : copy;
}

void round_into(const TensorView& sum, const TensorView& c, GradMode mode) {
  const auto* from = sum.as<float>();
  auto* to = c.as<bf16>();
  const int64_t columns = c.size(1), stride = c.stride(0);
  lamina::cpu::parallel_for(c.size(0), std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)),
                            [&](int64_t begin, int64_t end) {
                              for (int64_t row = begin; row < end; ++row)
                                for (int64_t i = 0; i < columns; ++i) {
                                  float value = from[row * columns + i];
                                  bf16& out = to[row * stride + i];
                                  if (mode == GradMode::accumulate) value += static_cast<float>(out);
                                  out = bf16(value);
                                }
                            });
}

}  // namespace

void matmul_widened(OpContext& ctx, const Matmul& args) {
  if (args.c.num_elements() == 0) return;
  Matmul wide = args;
  wide.a = widen(ctx, args.a);
  wide.b = widen(ctx, args.b);
  if (args.c.dtype == DType::bf16) {
    wide.c = ctx.scratch.take(DType::f32, args.c.shape);
    wide.mode = GradMode::overwrite;
  }
  ops::matmul(ctx, wide);
  if (args.c.dtype == DType::bf16) round_into(wide.c, args.c, args.mode);
}

}  // namespace lamina::ops::cpu
