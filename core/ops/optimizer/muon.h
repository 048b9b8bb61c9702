// The element-wise halves of a Muon step (arXiv 2502.16982; reference.muon_update), over flat arrays; what lies between them is
// newton_schulz.h on whole matrices.
//   g = grad_scale * grad;  buffer = momentum buffer + g;  out = g + momentum buffer   (Nesterov)
//   w = w (1 - lr weight_decay) - lr update_scale update
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

struct MuonMomentum {
  TensorView grad;    // [n] acc
  TensorView buffer;  // [n] acc; updated
  TensorView out;     // [n] acc
  double momentum = 0.95;
  double grad_scale = 1.0;  // the clipping factor
};
void muon_momentum(OpContext& ctx, const MuonMomentum& args);

struct MuonApply {
  TensorView update;  // [n] acc: the orthogonalised matrix' elements
  TensorView master;  // [n] acc; updated
  TensorView param;   // [n] compute dtype or empty: receives the rounded master
  double lr = 0, weight_decay = 0.1;
  double update_scale = 1;  // 0.2 sqrt(longer side): the size of AdamW's updates
};
void muon_apply(OpContext& ctx, const MuonApply& args);

}  // namespace lamina::ops
