// Causal softmax attention that never holds T x T (Dao et al., arXiv 2205.14135). Key and value widths differ freely.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

// All views [batch, T, heads, width] with unit stride on the last axis and any other strides. o_i = sum_{j<=i} P_ij v_j,
// P = softmax_j(scale <q_i, k_j>). Softmax in acc. With document_starts [batch, T] i32 (contiguous; for each token the position in
// its sequence of its document's first token), j runs over the token's own document only. The queries may be those of the last T tokens
// of S >= T keys, without document_starts: o_i = sum_{j <= S - T + i}.
struct AttentionForward {
  TensorView q;  // [batch, T, heads, d_qk]
  TensorView k;  // [batch, S, heads, d_qk]
  TensorView v;  // [batch, S, heads, d_v]
  double scale = 1.0;
  TensorView o;                     // [batch, T, heads, d_v]
  TensorView lse;                   // [batch, heads, T] acc, contiguous
  TensorView document_starts = {};  // or empty
  TensorView max_logit = {};  // [batch, heads] acc, contiguous, or empty: the largest scale <q_i, k_j> that was seen
};
void attention_forward(OpContext& ctx, const AttentionForward& args);

struct AttentionBackward {
  TensorView q, k, v;
  double scale = 1.0;
  TensorView o, lse;      // from forward
  TensorView d_o;         // [batch, T, heads, d_v]
  TensorView dq, dk, dv;  // like q, k, v; overwritten
  TensorView document_starts = {};
};
void attention_backward(OpContext& ctx, const AttentionBackward& args);

// MLA's keys (Kimi Linear's NoPE form): head h's key is [k_nope_h | k_shared], the shared part being one vector per token.
struct PackSharedKeys {
  TensorView k_nope;    // [tokens, heads, d_nope], unit stride on the last axis
  TensorView k_shared;  // [tokens, d_shared], unit stride on the last axis
  TensorView k;         // [tokens, heads, d_nope + d_shared]
};
void pack_shared_keys(OpContext& ctx, const PackSharedKeys& args);
// The adjoint: dk_nope is a copy, dk_shared the sum over heads. Both overwrite.
struct UnpackSharedKeys {
  TensorView dk;         // [tokens, heads, d_nope + d_shared]
  TensorView dk_nope;    // [tokens, heads, d_nope]
  TensorView dk_shared;  // [tokens, d_shared]
};
void unpack_shared_keys(OpContext& ctx, const UnpackSharedKeys& args);

}  // namespace lamina::ops
