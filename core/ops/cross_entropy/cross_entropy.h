// Cross-entropy fused with the output projection, in pieces of tokens: tokens x vocabulary logits never exist whole.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

// token_loss_t = logsumexp_v(<x_t, w_v>) - <x_t, w_target>. With dx given, the gradients of grad_scale * sum_t token_loss_t
// are computed in the same pass over the pieces, while the logits are at hand: dx overwritten, dweight accumulated.
struct LinearCrossEntropy {
  TensorView x;           // [tokens, dim]
  TensorView weight;      // [vocab, dim]
  TensorView targets;     // [tokens] i32, each in [0, vocab); LAMINA_CHECK otherwise
  TensorView token_loss;  // [tokens] acc
  double grad_scale = 0.0;
  TensorView dx;       // [tokens, dim] or empty (loss only)
  TensorView dweight;  // [vocab, dim] acc or empty; given iff dx is
};
void linear_cross_entropy(OpContext& ctx, const LinearCrossEntropy& args);

// Tokens of a piece, the last of which may be shorter. Every piece reads the whole weight and its gradient once more.
int64_t cross_entropy_piece(int64_t num_tokens, int64_t vocab, DType acc, DeviceKind device);

}  // namespace lamina::ops
