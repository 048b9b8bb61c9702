#include "model/mlp.h"

#include "core/ops/matmul/matmul.h"
#include "core/ops/swiglu/swiglu.h"

namespace lamina::model {

Mlp::Mlp(Parameters& parameters, const std::string& prefix) {
  const std::string gate = prefix + "gate_proj.weight", up = prefix + "up_proj.weight",
                    down = prefix + "down_proj.weight";
  gate_up_ = parameters.fused_value(gate, up);
  d_gate_up_ = parameters.fused_gradient(gate, up);
  down_ = parameters.value(down);
  d_down_ = parameters.gradient(down);
  for (const std::string& name : {gate, up, down}) used_.push_back(parameters.index_of(name));
}

void Mlp::project(ops::OpContext& ctx, TensorView x, Saved& saved, Arena& arena) const {
  saved.gate_up = arena.take(gate_up_.dtype, {x.size(0), gate_up_.size(0)});
  ops::linear(ctx, x, gate_up_, saved.gate_up);
}

void Mlp::forward(ops::OpContext& ctx, const Batch&, TensorView x, TensorView y, Saved& saved,
                  ActivationArenas arenas) const {
  project(ctx, x, saved, arenas.expensive);
  const ArenaScope scope(ctx.scratch);
  const TensorView activation = ctx.scratch.take(gate_up_.dtype, {x.size(0), down_.size(1)});
  ops::swiglu_forward(ctx, {saved.gate_up, activation});
  ops::linear(ctx, activation, down_, y);
}

void Mlp::recompute(ops::OpContext& ctx, const Batch&, TensorView x, Saved& saved, Recompute mode,
                    Arena& temporary) const {
  if (mode == Recompute::full) project(ctx, x, saved, temporary);
}

void Mlp::backward(ops::OpContext& ctx, const Batch&, const Saved& saved, TensorView x, TensorView dy, TensorView dx,
                   WeightGradients& weights) const {
  const ArenaScope scope(ctx.scratch);
  const Shape wide{x.size(0), down_.size(1)};
  const TensorView activation = weights.operands(ctx).take(gate_up_.dtype, wide);
  const TensorView d_activation = ctx.scratch.take(gate_up_.dtype, wide);
  ops::linear_input_gradient(ctx, dy, down_, d_activation, ops::GradMode::overwrite);
  // The saved projection has served once the gradient is known, so the gradient takes its place.
  ops::swiglu_backward(ctx, {saved.gate_up, d_activation, saved.gate_up, activation});
  weights.add(ctx, dy, activation, d_down_);
  ops::linear_input_gradient(ctx, saved.gate_up, gate_up_, dx, ops::GradMode::overwrite);
  weights.add(ctx, saved.gate_up, x, d_gate_up_);
}

}  // namespace lamina::model
