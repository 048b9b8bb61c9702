// Causal depthwise convolution followed by SiLU (Kimi Linear, arXiv 2510.26692, section 4; Mamba's short convolution):
//   c[t] = sum_{i < taps} w[i] x[t - taps + 1 + i],   y = c sigmoid(c)
// The last tap is the current token. Tokens before the document's first one count as zero.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

// document_starts [batch, T] i32, contiguous: for each token the position in its sequence of its document's first token.
// Empty: every sequence is one document.
struct ShortConvForward {
  TensorView x;       // [batch, T, channels], unit stride on the last axis
  TensorView weight;  // [channels, taps] acc, contiguous
  TensorView document_starts;
  TensorView y;  // [batch, T, channels]
};
void short_conv_forward(OpContext& ctx, const ShortConvForward& args);

struct ShortConvBackward {
  TensorView x, weight, document_starts;  // c is computed again from x
  TensorView dy;                          // [batch, T, channels]
  TensorView dx;                          // [batch, T, channels]; overwritten; may not be dy
  TensorView dweight;                     // [channels, taps] acc; accumulates
};
void short_conv_backward(OpContext& ctx, const ShortConvBackward& args);

}  // namespace lamina::ops
