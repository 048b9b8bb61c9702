// Root-mean-square normalisation: y = x * rsqrt(mean(x^2) + eps) * weight.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

// Statistics in accumulation_dtype() ("acc" below). Weights may be in the compute dtype or in acc.
struct RmsNormForward {
  TensorView x;       // [rows, dim], rows contiguous (any row stride)
  TensorView weight;  // [dim]
  double eps = 1e-5;
  TensorView y;     // [rows, dim]
  TensorView rstd;  // [rows] acc
  // Fused residual addition: with `delta` and `sum` given, sum = x + delta (rounded to the dtype of sum) is written and
  // normalised in place of x. sum may be x.
  TensorView delta;  // [rows, dim] or empty
  TensorView sum;    // [rows, dim] or empty
};
void rms_norm_forward(OpContext& ctx, const RmsNormForward& args);

struct RmsNormBackward {
  TensorView x;  // what was normalised
  TensorView weight;
  TensorView rstd;  // from forward
  TensorView dy;    // [rows, dim]
  TensorView dx;    // [rows, dim]; compute dtype or acc
  GradMode dx_mode = GradMode::overwrite;
  TensorView dweight;  // [dim] acc; accumulates
};
void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args);

// Recompute y from x and the saved rstd (no statistics pass).
struct RmsNormApply {
  TensorView x, weight, rstd, y;
};
void rms_norm_apply(OpContext& ctx, const RmsNormApply& args);

}  // namespace lamina::ops
