#include "model/moe.h"

#include "core/ops/experts/experts.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/router/router.h"
#include "core/ops/swiglu/swiglu.h"
#include "core/tensor/host_copy.h"
#include "model/views.h"

namespace lamina::model {
namespace {

TensorView first_rows(const TensorView& x, int64_t count) {
  return x.slice(0, 0, count);
}

TensorView flat_column(const TensorView& x) {
  return x.reshaped({x.num_elements(), 1});
}

}  // namespace

Moe::Moe(const ModelConfig& c, Parameters& parameters, int64_t layer, expert::Exchange* exchange)
    : hidden_(c.hidden_size),
      width_(c.moe_intermediate_size),
      num_experts_(c.num_experts),
      per_token_(c.num_experts_per_token),
      scaling_(c.routed_scaling_factor),
      alpha_(c.aux_loss_alpha),
      renormalize_(c.moe_renormalize),
      exchange_(exchange) {
  const std::string prefix = fmt::format("model.layers.{}.block_sparse_moe.", layer);
  const int gate = parameters.index_of(prefix + "gate.weight");
  used_.push_back(gate);
  gate_ = parameters.value(gate);
  d_gate_ = parameters.gradient(gate);
  bias_ = parameters.value(prefix + "gate.e_score_correction_bias");
  const int64_t first = has_ranks() ? exchange->first_expert() : 0;
  const int64_t count = has_ranks() ? exchange->experts_per_rank() : num_experts_;
  for (int64_t expert = first; expert < first + count; ++expert) {
    const std::string name = fmt::format("{}experts.{}.", prefix, expert);
    const std::string w1 = name + "w1.weight", w3 = name + "w3.weight", w2 = name + "w2.weight";
    w13_.push_back(parameters.fused_value(w1, w3));
    d_w13_.push_back(parameters.fused_gradient(w1, w3));
    w2_.push_back(parameters.value(w2));
    d_w2_.push_back(parameters.gradient(w2));
    for (const std::string& each : {w1, w3, w2}) used_.push_back(parameters.index_of(each));
  }
  if (c.num_shared_experts > 0) {
    shared_.emplace_back(parameters, prefix + "shared_experts.");
    used_.insert(used_.end(), shared_.front().parameters().begin(), shared_.front().parameters().end());
  }
}

void Moe::route(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Arena& arena) const {
  const int64_t tokens = batch.num_tokens();
  const DType acc = accumulation_dtype(x.dtype);
  saved.scores = arena.take(acc, {tokens, num_experts_});
  saved.chosen = arena.take(DType::i32, {tokens, per_token_});
  saved.weights = arena.take(acc, {tokens, per_token_});
  TensorView balance;
  saved.fractions = {};
  if (alpha_ > 0 && batch.runs.empty()) {
    saved.fractions = arena.take(acc, {batch.num_sequences, num_experts_});
    balance = batch.probes.balance ? batch.probes.balance : ctx.scratch.take(acc, {batch.num_sequences});
  }
  ops::linear(ctx, x, gate_, saved.scores);
  ops::router_forward(ctx, {saved.scores, bias_, scaling_, renormalize_, saved.scores, saved.chosen, saved.weights,
                            saved.fractions, balance});
  if (batch.probes.expert_counts) observe(ctx, batch.probes, saved);
}

void Moe::observe(ops::OpContext& ctx, const SublayerProbes& probes, const Saved& saved) const {
  ops::router_observe(ctx, {saved.chosen, saved.scores, probes.expert_counts, probes.entropy});
  if (probes.choices == nullptr) return;
  const HostCopy chosen(saved.chosen, ctx.stream);
  const int32_t* choices = chosen->as<int32_t>();
  probes.choices->insert(probes.choices->end(), choices, choices + chosen->num_elements());
}

// Rows of this rank's experts from all ranks; `meanwhile` runs while they travel.
void Moe::receive(ops::OpContext& ctx, TensorView x, Saved& saved, Arena& arena,
                  const std::function<void()>& meanwhile) const {
  saved.route = exchange_->route(saved.chosen, arena, ctx.stream);
  const int64_t rows = saved.route.num_received;
  saved.rows = arena.take(x.dtype, {rows, hidden_});
  saved.row_chosen = arena.take(DType::i32, {rows, per_token_});
  saved.row_weights = arena.take(saved.weights.dtype, {rows, per_token_});
  const TensorView packed = ctx.scratch.take(x.dtype, {saved.route.num_sent(), hidden_});
  comm::Request request = exchange_->dispatch(ctx, saved.route, x, packed, saved.rows);
  exchange_->send_choices(ctx, saved.route, saved.chosen, saved.weights, saved.row_chosen, saved.row_weights);
  meanwhile();
  request.wait();
}

// The pairs of row and expert, in the order of the experts.
void Moe::group(ops::OpContext& ctx, Saved& saved, Arena& arena, bool again) const {
  const TensorView chosen = has_ranks() ? saved.row_chosen : saved.chosen;
  const TensorView weights = has_ranks() ? saved.row_weights : saved.weights;
  saved.offsets = arena.take(DType::i32, {experts_here() + 1});
  saved.row_of = arena.take(DType::i32, {chosen.num_elements()});
  saved.position = arena.take(DType::i32, chosen.shape);
  saved.pair_weight = arena.take(weights.dtype, {chosen.num_elements()});
  // Among the rows of other ranks there are choices of other ranks' experts; without, every token has all its experts here.
  const bool host_asks = has_ranks() || ops::needs_host_offsets(ctx, w13_.front().dtype);
  if (!again) saved.host_offsets.resize(host_asks ? static_cast<size_t>(experts_here()) + 1 : 0);
  ops::group_rows(ctx, {chosen, weights, saved.offsets, saved.row_of, saved.position, saved.pair_weight,
                        again ? std::span<int64_t>() : saved.host_offsets});
  saved.num_pairs = has_ranks() ? saved.host_offsets.back() : chosen.num_elements();
}

void Moe::project(ops::OpContext& ctx, TensorView rows, Saved& saved, Arena& arena) const {
  const int64_t pairs = saved.num_pairs;
  saved.gate_up = arena.take(rows.dtype, {pairs, 2 * width_});
  const ArenaScope scope(ctx.scratch);
  const TensorView x = ctx.scratch.take(rows.dtype, {pairs, hidden_});
  ops::gather_rows(ctx, {rows, first_rows(saved.row_of, pairs), x});
  ops::grouped_linear(ctx, {x, w13_, saved.expert_rows(), saved.gate_up});
}

void Moe::run_experts(ops::OpContext& ctx, const Saved& saved, const Rows& rows) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t pairs = saved.num_pairs;
  const TensorView h = ctx.scratch.take(rows.y.dtype, {pairs, width_});
  ops::swiglu_forward(ctx, {saved.gate_up, h, first_rows(saved.pair_weight, pairs)});
  const TensorView outputs = ctx.scratch.take(rows.y.dtype, {pairs, hidden_});
  ops::grouped_linear(ctx, {h, w2_, saved.expert_rows(), outputs});
  ops::combine_rows(ctx, {outputs, saved.position, rows.y, rows.mode});
}

void Moe::forward(ops::OpContext& ctx, const Batch& batch, TensorView x, TensorView y, Saved& saved,
                  ActivationArenas arenas) const {
  route(ctx, batch, x, saved, arenas.expensive);
  const auto run_shared = [&] {
    if (!shared_.empty()) shared_.front().forward(ctx, batch, x, y, saved.shared, arenas);
  };
  const ops::GradMode mode = shared_.empty() ? ops::GradMode::overwrite : ops::GradMode::accumulate;
  if (!has_ranks()) {
    run_shared();
    group(ctx, saved, arenas.expensive, false);
    project(ctx, x, saved, arenas.expensive);
    run_experts(ctx, saved, {x, y, {}, {}, {}, mode});
    return;
  }
  receive(ctx, x, saved, arenas.expensive, run_shared);
  group(ctx, saved, arenas.expensive, false);
  project(ctx, saved.rows, saved, arenas.expensive);
  const TensorView outputs = ctx.scratch.take(x.dtype, saved.rows.shape);
  run_experts(ctx, saved, {saved.rows, outputs, {}, {}, {}, ops::GradMode::overwrite});
  const TensorView returned = ctx.scratch.take(x.dtype, {saved.route.num_sent(), hidden_});
  exchange_->give_back(ctx, saved.route, outputs, returned).wait();
  exchange_->add_returned(ctx, saved.route, returned, y, mode);
}

void Moe::recompute(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Recompute mode,
                    Arena& temporary) const {
  if (mode != Recompute::full) return;
  route(ctx, batch, x, saved, temporary);
  const auto run_shared = [&] {
    if (!shared_.empty()) shared_.front().recompute(ctx, batch, x, saved.shared, mode, temporary);
  };
  if (has_ranks())
    receive(ctx, x, saved, temporary, run_shared);
  else
    run_shared();
  group(ctx, saved, temporary, true);
  project(ctx, has_ranks() ? saved.rows : x, saved, temporary);
}

void Moe::experts_backward(ops::OpContext& ctx, const Saved& saved, const Rows& rows, WeightGradients& weights) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t pairs = saved.num_pairs;
  const DType dtype = rows.d_y.dtype;
  const TensorView row_of = first_rows(saved.row_of, pairs);
  Arena& operands = weights.operands(ctx);
  const TensorView d_outputs = operands.take(dtype, {pairs, hidden_}), h = operands.take(dtype, {pairs, width_});
  const TensorView x = operands.take(dtype, {pairs, hidden_});
  const TensorView dh = ctx.scratch.take(dtype, {pairs, width_});
  const TensorView d_pair_weight = ctx.scratch.take(saved.pair_weight.dtype, {pairs});
  ops::gather_rows(ctx, {rows.d_y, row_of, d_outputs});
  ops::grouped_linear_input_gradient(ctx, {d_outputs, w2_, saved.expert_rows(), dh});
  // As in Mlp, the gradient takes the place of the projection.
  ops::swiglu_backward(ctx, {saved.gate_up, dh, saved.gate_up, h, first_rows(saved.pair_weight, pairs), d_pair_weight});
  weights.add_grouped(ctx, d_outputs, h, saved.expert_rows(), d_w2_);
  ops::combine_rows(ctx, {d_pair_weight.reshaped({pairs, 1}), flat_column(saved.position), flat_column(rows.d_weights),
                          ops::GradMode::overwrite});
  ops::gather_rows(ctx, {rows.x, row_of, x});
  const TensorView dx = ctx.scratch.take(dtype, {pairs, hidden_});
  ops::grouped_linear_input_gradient(ctx, {saved.gate_up, w13_, saved.expert_rows(), dx});
  weights.add_grouped(ctx, saved.gate_up, x, saved.expert_rows(), d_w13_);
  ops::combine_rows(ctx, {dx, saved.position, rows.dx, rows.mode});
}

void Moe::router_backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x,
                          TensorView d_weights, TensorView dx, WeightGradients& weights) const {
  const TensorView d_logits = weights.operands(ctx).take(x.dtype, {batch.num_tokens(), num_experts_});
  const double sequence_scale = batch.grad_scale * static_cast<double>(batch.seq_len);
  ops::router_backward(ctx, {saved.scores, saved.chosen, scaling_, renormalize_, d_weights, saved.fractions,
                             alpha_ * sequence_scale, d_logits});
  ops::linear_input_gradient(ctx, d_logits, gate_, dx, ops::GradMode::accumulate);
  weights.add(ctx, d_logits, x, d_gate_);
}

void Moe::backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView dy,
                   TensorView dx, WeightGradients& weights) const {
  const ArenaScope scope(ctx.scratch);
  const DType acc = saved.weights.dtype;
  const TensorView d_weights = ctx.scratch.take(acc, saved.weights.shape);
  const auto shared_backward = [&] {
    if (!shared_.empty()) shared_.front().backward(ctx, batch, saved.shared, x, dy, dx, weights);
  };
  const ops::GradMode mode = shared_.empty() ? ops::GradMode::overwrite : ops::GradMode::accumulate;
  if (!has_ranks()) {
    shared_backward();
    experts_backward(ctx, saved, {x, {}, dy, dx, d_weights, mode}, weights);
  } else {
    const TensorView packed = ctx.scratch.take(x.dtype, {saved.route.num_sent(), hidden_});
    const TensorView d_rows = ctx.scratch.take(x.dtype, saved.rows.shape);
    const TensorView dx_rows = ctx.scratch.take(x.dtype, saved.rows.shape);
    const TensorView d_row_weights = ctx.scratch.take(acc, saved.row_weights.shape);
    comm::Request dispatched = exchange_->dispatch(ctx, saved.route, dy, packed, d_rows);
    shared_backward();
    dispatched.wait();
    experts_backward(ctx, saved, {saved.rows, {}, d_rows, dx_rows, d_row_weights, ops::GradMode::overwrite}, weights);
    comm::Request returned = exchange_->give_back(ctx, saved.route, dx_rows, packed);
    exchange_->give_back_weights(ctx, saved.route, d_row_weights, saved.chosen, d_weights);
    returned.wait();
    exchange_->add_returned(ctx, saved.route, packed, dx, mode);
  }
  router_backward(ctx, batch, saved, x, d_weights, dx, weights);
}

}  // namespace lamina::model
