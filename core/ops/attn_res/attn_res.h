// The Attention Residuals read (arXiv 2603.15031, eqs. 2-6 and Algorithm 1).
//
// Query l reads sources v_0 .. v_{n-1}: logit_j = rstd(v_j) * <v_j, w (.) g>, a = softmax_j(logit), h = sum_j a_j v_j.
// w is the learned pseudo-query, g the weight of its RMSNorm, rstd(v) = rsqrt(mean(v^2) + eps). Values are not normalised.
//
// Two-phase form. Phase 1, once per block: one pass over the finished summaries serves all Q queries of the block's
// sublayers. Phase 2, per sublayer: the open partial sum p joins by an exact online-softmax merge, fused with the residual
// addition before it and the PreNorm after it. The one-phase read of Full AttnRes is phase 1 with one query and a merge
// without partial sum.
//
// All statistics in accumulation_dtype() ("acc"). `dim` is hidden_size; `tokens` rows are contiguous.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

struct AttnResQuery {
  TensorView norm_weight;  // g [dim], compute dtype or acc
  TensorView query;        // w [dim], compute dtype or acc
};
struct AttnResQueryGradient {
  TensorView norm_weight;  // [dim] acc; accumulates
  TensorView query;        // [dim] acc; accumulates
};

struct AttnResPhase1Forward {
  std::span<const TensorView> sources;    // n of [tokens, dim]
  std::span<const AttnResQuery> queries;  // Q
  double eps = 1e-5;
  std::span<const TensorView> mean;  // Q of [tokens, dim]: sum_j softmax_j(logit) v_j over the n sources
  TensorView rstd;                   // [n, tokens] acc
  TensorView logit;                  // [Q, n, tokens] acc
  TensorView lse;                    // [Q, tokens] acc: log sum_j exp(logit_j)
};
void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args);

// p = partial + delta when delta is given (rounded to the dtype, written to partial_sum), else p = partial.
// With p:    a_p = sigmoid(logit_p - lse),  h = (1 - a_p) mean + a_p p,  lse_total = log(exp(lse) + exp(logit_p)).
// Without:   h = mean, lse_total = lse (the first sublayer of a block).
// Then       y = h * rsqrt(mean(h^2) + norm_eps) * norm_weight, from h before rounding.
struct AttnResMergeForward {
  TensorView mean;         // [tokens, dim] of this query
  TensorView lse;          // [tokens] acc of this query
  TensorView partial;      // [tokens, dim] or empty
  TensorView delta;        // [tokens, dim] or empty
  TensorView partial_sum;  // [tokens, dim], given iff delta is; may be `partial` or `delta`
  AttnResQuery query;
  double eps = 1e-5;
  TensorView norm_weight;  // [dim] of the PreNorm
  double norm_eps = 1e-5;
  TensorView h;              // [tokens, dim]
  TensorView y;              // [tokens, dim]
  TensorView partial_rstd;   // [tokens] acc; written iff p exists
  TensorView partial_logit;  // [tokens] acc; written iff p exists
  TensorView lse_total;      // [tokens] acc
  TensorView h_rstd;         // [tokens] acc
};
void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args);

// Through the PreNorm and the merge: from dy to dh (kept for phase 1), <dh, h>, and the gradient of p.
// dp = a_p dh + s rstd_p (w.g) - s logit_p rstd_p^2 p / dim   with s = a_p (<dh, p> - <dh, h>)
struct AttnResMergeBackward {
  TensorView h;                                       // [tokens, dim]
  TensorView h_rstd;                                  // [tokens] acc
  TensorView norm_weight;                             // [dim]
  TensorView dy;                                      // [tokens, dim]
  TensorView partial;                                 // p [tokens, dim] or empty
  TensorView partial_rstd, partial_logit, lse_total;  // [tokens] acc
  AttnResQuery query;
  TensorView dh;        // [tokens, dim] compute dtype or acc; written
  TensorView dh_dot_h;  // [tokens] acc; written
  TensorView dpartial;  // [tokens, dim] compute dtype or acc; required iff p exists
  GradMode dpartial_mode = GradMode::accumulate;
  TensorView dnorm_weight;      // [dim] acc; accumulates
  AttnResQueryGradient dquery;  // accumulates the partial sum's share
};
void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args);

// One pass over the summaries for all queries, after the backward of the block's first sublayer.
//   a_qj = exp(logit_qj - lse_total_q);   s_qj = a_qj (<dh_q, v_j> - dh_dot_h_q)
//   dv_j += sum_q a_qj dh_q + rstd_j sum_q s_qj (w.g)_q - rstd_j^2 v_j / dim sum_q s_qj logit_qj
//   d(w.g)_q += sum_{t,j} s_qj rstd_j v_j
struct AttnResPhase1Backward {
  std::span<const TensorView> sources;             // n of [tokens, dim]
  std::span<const AttnResQuery> queries;           // Q
  TensorView rstd;                                 // [n, tokens] acc
  TensorView logit;                                // [Q, n, tokens] acc
  std::span<const TensorView> lse_total;           // Q of [tokens] acc
  std::span<const TensorView> dh;                  // Q of [tokens, dim] compute dtype or acc
  std::span<const TensorView> dh_dot_h;            // Q of [tokens] acc
  std::span<const TensorView> dsources;            // n of [tokens, dim] acc
  std::span<const GradMode> dsource_modes;         // n
  std::span<const AttnResQueryGradient> dqueries;  // Q; accumulate
};
void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args);

// Means over tokens of the softmax of one query, for the log: a_j, its entropy -sum_j a_j ln a_j, its largest weight max_j a_j.
// weights[j] for the n sources, and weights[n] for the partial sum when partial_logit is given.
struct AttnResDepthWeights {
  TensorView logit;           // [n, tokens] acc, of one query
  TensorView partial_logit;   // [tokens] acc or empty
  TensorView lse_total;       // [tokens] acc
  std::span<double> weights;  // n or n + 1; on the host, as the next two
  double* entropy = nullptr;  // nats
  double* largest_weight = nullptr;
};
void attn_res_depth_weights(OpContext& ctx, const AttnResDepthWeights& args);

// Mean over tokens of the cosine <v_i, v_j> / (|v_i| |v_j|) of every two sources, 0 where one is zero: how different what a query can
// choose from is. Of at most num_tokens tokens, every ceil(tokens / num_tokens)-th from the first.
struct AttnResSourceCosines {
  std::span<const TensorView> sources;  // n of [tokens, dim]
  int64_t num_tokens = 256;
  std::span<double> cosines;  // n (n - 1) / 2 on the host: (0, 1), (0, 2), .., (1, 2), ..
};
void attn_res_source_cosines(OpContext& ctx, const AttnResSourceCosines& args);

}  // namespace lamina::ops
