// Matrix product: c = a b, or c += a b.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

// Any strides with one unit stride per matrix, so a transposed view is a transposed operand. All of a, b in one dtype
// (bf16, f32, f64); c in that dtype or in accumulation_dtype() of it. Sums in accumulation_dtype().
struct Matmul {
  TensorView a;  // [M, K]
  TensorView b;  // [K, N]
  TensorView c;  // [M, N], rows contiguous (any row stride)
  GradMode mode = GradMode::overwrite;
};
void matmul(OpContext& ctx, const Matmul& args);

// Linear layers keep weights as [out, in], Hugging Face's layout: y = x w^T.
//   forward        y  = x w^T           x [tokens, in], w [out, in], y [tokens, out]
//   input gradient dx = dy w            overwrite or accumulate
//   weight gradient dw += dy^T x        dw in accumulation_dtype()
inline void linear(OpContext& ctx, const TensorView& x, const TensorView& w, const TensorView& y) {
  matmul(ctx, {x, w.transposed(), y, GradMode::overwrite});
}
inline void linear_input_gradient(OpContext& ctx, const TensorView& dy, const TensorView& w, const TensorView& dx,
                                  GradMode mode) {
  matmul(ctx, {dy, w, dx, mode});
}
inline void linear_weight_gradient(OpContext& ctx, const TensorView& dy, const TensorView& x, const TensorView& dw) {
  matmul(ctx, {dy.transposed(), x, dw, GradMode::accumulate});
}

}  // namespace lamina::ops
