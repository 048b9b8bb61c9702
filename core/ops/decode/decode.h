// One more token for each of several sequences whose past is cached: what generating text needs from the mixers. Row i of the operands
// continues sequence i, whose memory may lie anywhere; no two rows share one.
#pragma once

#include <span>

#include "core/ops/op.h"

namespace lamina::ops {

// As ShortConvForward (core/ops/short_conv/short_conv.h).
struct ShortConvStep {
  TensorView x;       // [sequences, channels], unit stride on the last axis
  TensorView weight;  // [channels, taps] acc, contiguous
  std::span<const TensorView>
      tails;     // each [taps - 1, channels] like x: the inputs before it, oldest first; x joins, the oldest leaves
  TensorView y;  // [sequences, channels]
};
void short_conv_step(OpContext& ctx, const ShortConvStep& args);

// As KdaForward (core/ops/kda/kda.h).
struct KdaStep {
  TensorView q, k;  // [sequences, heads, K], unit stride on the last axis, as all of these
  TensorView v;     // [sequences, heads, V]
  TensorView g;     // [sequences, heads, K] acc
  TensorView beta;  // [sequences, heads] acc
  double scale = 1.0;
  std::span<const TensorView> states;  // each [heads, K, V] acc, contiguous; updated
  TensorView o;                        // [sequences, heads, V]
};
void kda_step(OpContext& ctx, const KdaStep& args);

// Attention over compressed keys and values (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). A token's latent is [c | k_shared]; with head
// h's rows of kv_b being [W_k | W_v], its key is [W_k c | k_shared] and its value W_v c:
//   o_h = sum_j P_j W_v c_j,   P = softmax_j(scale <q_h, [W_k c_j | k_shared_j]>)
// computed from the latents themselves, with W_k taken to the query's side and W_v behind the sum, so that no key or value is made.
struct LatentAttention {
  TensorView q;                         // [sequences, heads, d_nope + d_shared], unit stride on the last axis
  TensorView kv_b;                      // [heads (d_nope + d_v), rank], contiguous
  std::span<const TensorView> latents;  // each [tokens, rank + d_shared], contiguous, the current token being the last
  double scale = 1.0;
  TensorView o;  // [sequences, heads, d_v], unit stride on the last axis
};
void latent_attention(OpContext& ctx, const LatentAttention& args);

// Copies: each matrix of `from` to its place in `to`, which no other overlaps. So the rows of a pass get to the memory of their
// sequences, and back, by one call. The two of a pair are alike in shape, all in dtype; unit stride on the last axis.
struct CopyRows {
  std::span<const TensorView> from, to;  // [rows, columns] each
};
void copy_rows(OpContext& ctx, const CopyRows& args);

}  // namespace lamina::ops
