// AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101) over flat arrays.
//   g = grad_scale * grad;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w = w (1 - lr wd) - lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps)
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

struct AdamW {
  TensorView master;  // [n] acc; updated
  TensorView grad;    // [n] acc
  TensorView m, v;    // [n] acc; updated
  TensorView param;   // [n] compute dtype or empty: receives the rounded master
  int64_t step = 1;   // counted from 1
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double grad_scale = 1.0;  // the clipping factor
};
void adamw(OpContext& ctx, const AdamW& args);

}  // namespace lamina::ops
