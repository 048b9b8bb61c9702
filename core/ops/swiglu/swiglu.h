// SwiGLU: y = silu(gate) * up, with silu(z) = z * sigmoid(z); with row weights, y = weight * silu(gate) * up: a mixture of
// experts folds the router's weight in here, so that the down projection's output need not be kept for its gradient.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

struct SwigluForward {
  TensorView gate_up;      // [tokens, 2 * width]: gate, then up
  TensorView y;            // [tokens, width]
  TensorView weight = {};  // [tokens] acc, or empty: all one
};
void swiglu_forward(OpContext& ctx, const SwigluForward& args);

struct SwigluBackward {
  TensorView gate_up;       // [tokens, 2 * width]
  TensorView dy;            // [tokens, width]
  TensorView dgate_up;      // [tokens, 2 * width]; overwritten, may be gate_up
  TensorView y;             // [tokens, width] or empty: when given, the forward's output is recomputed into it
  TensorView weight = {};   // as in forward
  TensorView dweight = {};  // [tokens] acc; overwritten; with `weight` only
};
void swiglu_backward(OpContext& ctx, const SwigluBackward& args);

}  // namespace lamina::ops
