// The part of linear_cross_entropy between its matrix products; no public operation.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

// token_loss_t = logsumexp_v(logit_tv) - logit_t,target. With dlogits given, it receives
// grad_scale * (softmax(logit_t) - onehot(target_t)), rounded once; it may be `logits` where the dtypes agree.
struct SoftmaxCrossEntropy {
  TensorView logits;      // [rows, vocab] acc, contiguous; may be overwritten
  TensorView targets;     // [rows] i32, already checked
  TensorView token_loss;  // [rows] acc
  double grad_scale = 0.0;
  TensorView dlogits;  // [rows, vocab] compute dtype, contiguous, or empty
};

}  // namespace lamina::ops
