// Mixture of experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; Kimi Linear): each token goes to the k experts of largest
// biased score, and to the shared expert.
//   y = sum over chosen of w_i E_i(x) + S(x),   E(x) = W2 (silu(W1 x) * W3 x);   scores and weights: core/ops/router/router.h
// Dropless: experts get as many rows as chose them. The weight is folded into the activation, so that the output of W2 is not
// needed for its gradient. With expert-parallel ranks, rows travel to the ranks of their experts and back (parallel/expert).
#pragma once

#include <functional>
#include <vector>

#include "core/ops/experts/experts.h"
#include "model/mlp.h"
#include "model/sublayer.h"
#include "parallel/expert/exchange.h"

namespace lamina::model {

class Moe {
 public:
  // Of the tokens of this rank, and, below, of the rows that its experts got: without expert ranks the same.
  struct Saved {
    TensorView scores;           // [tokens, experts] acc
    TensorView chosen, weights;  // [tokens, k] i32, acc
    TensorView fractions;        // [sequences, experts] acc, with a balance loss
    Mlp::Saved shared;
    expert::Exchange::Route route;       // with expert ranks
    TensorView rows;                     // [rows, hidden]
    TensorView row_chosen, row_weights;  // [rows, k] i32, acc
    TensorView offsets;                  // [experts of this rank + 1] i32
    std::vector<int64_t> host_offsets;   // the same, where the host must know them; else empty
    int64_t num_pairs = 0;               // offsets' last
    TensorView row_of, position;         // [rows * k] i32, [rows, k] i32
    TensorView pair_weight;              // [rows * k] acc
    TensorView gate_up;                  // [pairs, 2 * moe_intermediate_size]
    ops::ExpertRows expert_rows() const { return {offsets, host_offsets}; }
  };

  // `exchange` may be null: this rank has every expert.
  Moe(const ModelConfig& config, Parameters& parameters, int64_t layer, expert::Exchange* exchange);

  // Collective over the ranks of the exchange, as are the next two.
  void forward(ops::OpContext& ctx, const Batch& batch, TensorView x, TensorView y, Saved& saved,
               ActivationArenas arenas) const;
  void recompute(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Recompute mode,
                 Arena& temporary) const;
  // As Mla::backward. The gradient of the balance loss is added here.
  void backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView dy, TensorView dx,
                WeightGradients& weights) const;

  const std::vector<int>& parameters() const { return used_; }  // indices into Parameters

 private:
  bool has_ranks() const { return exchange_ != nullptr && exchange_->num_ranks() > 1; }
  int64_t experts_here() const { return static_cast<int64_t>(w13_.size()); }
  void route(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Arena& arena) const;
  void observe(ops::OpContext& ctx, const SublayerProbes& probes, const Saved& saved) const;
  void group(ops::OpContext& ctx, Saved& saved, Arena& arena,
             bool again) const;  // again: made before for the same tokens
  void project(ops::OpContext& ctx, TensorView rows, Saved& saved, Arena& arena) const;
  void receive(ops::OpContext& ctx, TensorView x, Saved& saved, Arena& arena,
               const std::function<void()>& meanwhile) const;
  // What the experts of this rank took and gave, and the gradients of both.
  struct Rows {
    TensorView x, y;                                // [rows, hidden]
    TensorView d_y, dx;                             // [rows, hidden]
    TensorView d_weights;                           // [rows, k] acc
    ops::GradMode mode = ops::GradMode::overwrite;  // of y, or dx
  };
  void run_experts(ops::OpContext& ctx, const Saved& saved, const Rows& rows) const;
  void experts_backward(ops::OpContext& ctx, const Saved& saved, const Rows& rows, WeightGradients& weights) const;
  void router_backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView d_weights,
                       TensorView dx, WeightGradients& weights) const;

  int64_t hidden_, width_, num_experts_, per_token_;
  double scaling_, alpha_;
  bool renormalize_;
  expert::Exchange* exchange_;
  TensorView gate_, d_gate_, bias_;
  std::vector<TensorView> w13_, d_w13_, w2_, d_w2_;  // of this rank's experts
  std::vector<Mlp> shared_;                          // one or none
  std::vector<int> used_;
};

}  // namespace lamina::model
