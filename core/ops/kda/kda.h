// Kimi Delta Attention (arXiv 2510.26692, eq. 1 and 6-9): per head, with a state S [K, V] in acc,
//   S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T,     o_t = scale S_t^T q_t
// `ref` is this recurrence token by token; the others work in chunks of 64 tokens with sub-blocks of 16.
// Also the operations around it in the layer: norms of queries and keys, gates, and the gated norm of the output.
#pragma once

#include <optional>

#include "core/ops/op.h"

namespace lamina::ops {

// Views have unit stride on the last axis and any other strides. document_starts as in short_conv.h: the state is zero where a
// document starts; the initial state is that of a sequence's first document, the final state that of its last.
struct KdaForward {
  TensorView q, k;  // [batch, T, heads, K]; of length one or zero each for the recurrence to be a contraction
  TensorView v;     // [batch, T, heads, V]
  TensorView g;     // [batch, T, heads, K] acc; log decay, at most 0
  TensorView beta;  // [batch, T, heads] acc
  double scale = 1.0;
  TensorView document_starts;
  TensorView initial_state;  // [batch, heads, K, V] acc, contiguous; empty: zero
  TensorView o;              // [batch, T, heads, V]
  TensorView final_state;    // [batch, heads, K, V] acc, contiguous; empty: not wanted
};
void kda_forward(OpContext& ctx, const KdaForward& args);

// Nothing but the inputs is kept: the states are computed again.
struct KdaBackward {
  TensorView q, k, v, g, beta;
  double scale = 1.0;
  TensorView document_starts, initial_state;
  TensorView d_o;              // [batch, T, heads, V]
  TensorView d_final_state;    // [batch, heads, K, V] acc; empty: zero
  TensorView dq, dk, dv;       // like q, k, v; overwritten
  TensorView dg, dbeta;        // like g, beta, acc; overwritten
  TensorView d_initial_state;  // [batch, heads, K, V] acc; overwritten; empty: not wanted
};
void kda_backward(OpContext& ctx, const KdaBackward& args);

// y = x rsqrt(sum(x^2) + eps), over the last axis.
struct L2NormForward {
  TensorView x;  // [tokens, heads, dim], unit stride on the last axis
  double eps = 1e-6;
  TensorView y;     // [tokens, heads, dim]; may be x
  TensorView rstd;  // [tokens, heads] acc, contiguous
};
void l2_norm_forward(OpContext& ctx, const L2NormForward& args);
struct L2NormBackward {
  TensorView y, rstd;  // from forward
  TensorView dy;       // [tokens, heads, dim]
  TensorView dx;       // overwritten, may be dy
};
void l2_norm_backward(OpContext& ctx, const L2NormBackward& args);

// Decay and write strength:
//   f' = f + dt_bias;   g = -exp(a_log) softplus(f'), or lower_bound sigmoid(exp(a_log) f');   beta = sigmoid(beta_logit)
struct KdaGateForward {
  TensorView f;        // [tokens, heads, K], unit stride on the last axis
  TensorView dt_bias;  // [heads, K] acc
  TensorView a_log;    // [heads] acc
  std::optional<double> lower_bound;
  TensorView beta_logits;  // [tokens, heads], unit stride on the last axis
  TensorView g;            // [tokens, heads, K] acc, contiguous
  TensorView beta;         // [tokens, heads] acc, contiguous
};
void kda_gate_forward(OpContext& ctx, const KdaGateForward& args);
struct KdaGateBackward {
  TensorView f, dt_bias, a_log;
  std::optional<double> lower_bound;
  TensorView beta;                // from forward
  TensorView dg, dbeta;           // acc
  TensorView df;                  // like f; overwritten
  TensorView dbeta_logits;        // like beta_logits; overwritten
  TensorView d_dt_bias, d_a_log;  // acc; accumulate
};
void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args);

// y = o rsqrt(mean(o^2) + eps) weight sigmoid(gate), over each head; the heads share the weight.
struct GatedRmsNormForward {
  TensorView o;       // [tokens, heads, dim], unit stride on the last axis
  TensorView weight;  // [dim] acc
  TensorView gate;    // [tokens, heads, dim], unit stride on the last axis; before the sigmoid
  double eps = 1e-5;
  TensorView y;     // [tokens, heads, dim]
  TensorView rstd;  // [tokens, heads] acc, contiguous
};
void gated_rms_norm_forward(OpContext& ctx, const GatedRmsNormForward& args);
struct GatedRmsNormBackward {
  TensorView o, weight, gate, rstd;
  TensorView dy;       // [tokens, heads, dim]
  TensorView d_o;      // overwritten, may be dy
  TensorView dgate;    // overwritten
  TensorView dweight;  // [dim] acc; accumulates
  TensorView y;        // [tokens, heads, dim] or empty: when given, the forward's output is made again in it
};
void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args);

}  // namespace lamina::ops
