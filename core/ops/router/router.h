// The router of a mixture of experts: sigmoid scores, a bias that only selects (DeepSeek-V3, arXiv 2412.19437, eq. 12-16), and
// the sequence-wise balance loss (eq. 17-20).
//   s = sigmoid(logits);   chosen = the k largest of s + bias;   w = scaling s / (sum over chosen of s + 1e-20), or scaling s
//   balance of a sequence = sum_i f_i P_i,   f_i = E / (k T) #{t : i among the k largest of s_t},   P_i = mean_t s_ti / sum_j s_tj
// Ties go to the lower index.
#pragma once

#include <span>

#include "core/ops/op.h"

namespace lamina::ops {

struct RouterForward {
  TensorView logits;  // [tokens, experts] acc, contiguous
  TensorView bias;    // [experts] acc
  double scaling = 1.0;
  bool renormalize = true;
  TensorView scores;   // [tokens, experts] acc, contiguous; may be logits
  TensorView chosen;   // [tokens, k] i32, contiguous; best first
  TensorView weights;  // [tokens, k] acc, contiguous
  // Of the balance loss; both empty: not wanted. tokens = sequences x T.
  TensorView fractions;  // [sequences, experts] acc: f
  TensorView balance;    // [sequences] acc
};
void router_forward(OpContext& ctx, const RouterForward& args);

struct RouterBackward {
  TensorView scores, chosen;
  double scaling = 1.0;
  bool renormalize = true;
  TensorView d_weights;      // [tokens, k] acc
  TensorView fractions;      // from forward, or empty
  double balance_scale = 0;  // gradient of the total with respect to one sequence's balance
  TensorView d_logits;       // [tokens, experts], compute dtype or acc, contiguous; overwritten
};
void router_backward(OpContext& ctx, const RouterBackward& args);

// What a run reports of its routers, added to what was there.
struct RouterObserve {
  TensorView chosen;   // [tokens, k] i32, contiguous
  TensorView scores;   // [tokens, experts] acc, contiguous
  TensorView counts;   // [experts] i32, contiguous; += how often each was chosen
  TensorView entropy;  // [1] f64; += sum over tokens of the entropy of s / (sum of s), in nats; empty: not wanted
};
void router_observe(OpContext& ctx, const RouterObserve& args);

}  // namespace lamina::ops
