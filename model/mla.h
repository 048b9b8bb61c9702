// Multi-head latent attention without positional encoding (Kimi Linear, arXiv 2510.26692; DeepSeek-V2, arXiv 2405.04434).
//   q = x Wq^T, or RMSNorm(x Wqa^T) Wqb^T with q_lora_rank          [tokens, heads, nope + shared]
//   c | k_shared = x Wkva^T                                         [tokens, kv_lora_rank | shared]
//   k_nope | v = RMSNorm(c) Wkvb^T                                  per head [nope | v]
//   k = [k_nope | k_shared for every head],  y = softmax(q k^T / sqrt(nope + shared)) v Wo^T
// Nothing is rotated (NoPE); the shared part keeps the name qk_rope_head_dim of the released configuration.
#pragma once

#include "model/sublayer.h"

namespace lamina::model {

class Mla {
 public:
  // All views [tokens, ...] in the compute dtype unless said otherwise.
  struct Saved {
    TensorView projections;  // [tokens, q | c | k_shared] or [tokens, q_a | c | k_shared]
    TensorView q_norm;       // [tokens, q_lora_rank], with q_lora_rank
    TensorView q_rstd;       // [tokens] acc
    TensorView q;            // [tokens, heads * d_qk]; a slice of projections without q_lora_rank
    TensorView kv_norm;      // [tokens, kv_lora_rank]
    TensorView kv_rstd;      // [tokens] acc
    TensorView kv;           // [tokens, heads * (nope + v)]
    TensorView k;            // [tokens, heads, d_qk]
    TensorView o;            // [tokens, heads * v]
    TensorView lse;          // [sequences, heads, seq_len] acc
  };

  Mla(const ModelConfig& config, Parameters& parameters, int64_t layer);

  void forward(ops::OpContext& ctx, const Batch& batch, TensorView x, TensorView y, Saved& saved,
               ActivationArenas arenas) const;
  // Makes again what `mode` did not keep, in `temporary`.
  void recompute(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Recompute mode,
                 Arena& temporary) const;
  // dx is overwritten; parameter gradients accumulate, those of matrices through `weights`: with deferred ones x and dy must
  // outlive this call, and `temporary` of recompute() is weights.operands().
  void backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView dy, TensorView dx,
                WeightGradients& weights) const;

  const std::vector<int>& parameters() const { return used_; }  // indices into Parameters

 private:
  struct Weight {
    TensorView value, gradient;
  };
  void intermediates(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, ActivationArenas arenas,
                     bool have_expensive) const;
  void key_value(ops::OpContext& ctx, int64_t tokens, Saved& saved, Arena& arena) const;
  void attend_runs(ops::OpContext& ctx, const Batch& batch, const Saved& saved) const;
  void attend_context(ops::OpContext& ctx, const SequenceRun& run, const TensorView& q, const TensorView& o) const;
  Weight weight(Parameters& parameters, const std::string& name);

  int64_t layer_, heads_, d_nope_, d_shared_, d_v_, kv_rank_, q_rank_;  // q_rank_ 0: one query projection
  double eps_, kv_eps_, scale_;
  Weight in_, q_b_, q_norm_, kv_norm_, kv_b_, o_;
  std::vector<int> used_;
};

}  // namespace lamina::model
