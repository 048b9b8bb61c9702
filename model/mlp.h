// SwiGLU MLP, dense or a mixture's shared expert: y = (silu(x Wgate^T) * (x Wup^T)) Wdown^T, gate and up in one product.
#pragma once

#include <string>

#include "model/sublayer.h"

namespace lamina::model {

class Mlp {
 public:
  struct Saved {
    TensorView gate_up;  // [tokens, 2 * intermediate_size]; the activation is made again inside SwiGLU's backward
  };

  // The matrices <prefix>gate_proj.weight, <prefix>up_proj.weight, <prefix>down_proj.weight.
  Mlp(Parameters& parameters, const std::string& prefix);

  void forward(ops::OpContext& ctx, const Batch& batch, TensorView x, TensorView y, Saved& saved,
               ActivationArenas arenas) const;
  void recompute(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Recompute mode,
                 Arena& temporary) const;
  void backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView dy, TensorView dx,
                WeightGradients& weights) const;

  const std::vector<int>& parameters() const { return used_; }

 private:
  void project(ops::OpContext& ctx, TensorView x, Saved& saved, Arena& arena) const;

  TensorView gate_up_, d_gate_up_, down_, d_down_;
  std::vector<int> used_;
};

}  // namespace lamina::model
