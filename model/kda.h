// Kimi Delta Attention: linear attention with a delta rule and a decay per channel (Kimi Linear, arXiv 2510.26692, section 4).
//   q | k | v = silu(conv(x Wqkv^T)), q and k divided by their length per head         heads of linear_head_dim
//   decay = gate((x Wfa^T) Wfb^T),  beta = sigmoid(x Wb^T)                               core/ops/kda/kda.h
//   o = recurrence(q, k, v, decay, beta) / sqrt(linear_head_dim)
//   y = (RMSNorm(o) per head * sigmoid((x Wga^T) Wgb^T)) Wo^T
#pragma once

#include <optional>

#include "model/sublayer.h"

namespace lamina::model {

class Kda {
 public:
  // All views [tokens, ...] in the compute dtype unless said otherwise. width = heads * head.
  struct Saved {
    TensorView projections;  // [tokens, q | k | v | f_a | g_a | b]
    TensorView f, gate;      // [tokens, width]
    TensorView qkv;          // [tokens, 3 width]: after convolution and norm
    TensorView qk_rstd;      // [tokens, 2 heads] acc
    TensorView g;            // [tokens, heads, head] acc, log decay
    TensorView beta;         // [tokens, heads] acc
    TensorView o;            // [tokens, width]
    TensorView o_rstd;       // [tokens, heads] acc
  };

  Kda(const ModelConfig& config, Parameters& parameters, int64_t layer);

  void forward(ops::OpContext& ctx, const Batch& batch, TensorView x, TensorView y, Saved& saved,
               ActivationArenas arenas) const;
  // Makes again what `mode` did not keep, in `temporary`.
  void recompute(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Recompute mode,
                 Arena& temporary) const;
  // As Mla::backward.
  void backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView dy, TensorView dx,
                WeightGradients& weights) const;

  const std::vector<int>& parameters() const { return used_; }  // indices into Parameters

 private:
  struct Weight {
    TensorView value, gradient;
  };
  Weight weight(Parameters& parameters, const std::string& name);
  Weight fused(Parameters& parameters, const std::string& prefix, const std::vector<const char*>& names);
  void project(ops::OpContext& ctx, TensorView x, Saved& saved, Arena& arena) const;
  void convolve(ops::OpContext& ctx, const Batch& batch, Saved& saved, Arena& arena) const;
  TensorView attend(ops::OpContext& ctx, const Batch& batch, Saved& saved, Arena& arena) const;
  void output_backward(ops::OpContext& ctx, const Saved& saved, TensorView dy, TensorView d_o, TensorView d_gate,
                       WeightGradients& weights) const;
  void mixing_backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView d_o, TensorView d_in,
                       TensorView df) const;
  TensorView part(const TensorView& qkv, int64_t index) const;  // q, k or v as [tokens, heads, head]
  int64_t rank_column(int64_t index) const { return 3 * width_ + index * head_; }

  void convolve_runs(ops::OpContext& ctx, const Batch& batch, Saved& saved) const;
  void mix_runs(ops::OpContext& ctx, const Batch& batch, Saved& saved) const;

  int64_t layer_, heads_, head_, width_;
  double eps_, scale_;
  std::optional<double> lower_bound_;
  Weight in_, f_b_, g_b_, conv_, a_log_, dt_bias_, o_norm_, o_;
  std::vector<int> used_;
};

}  // namespace lamina::model
