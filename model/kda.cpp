#include "model/kda.h"

#include <array>
#include <cmath>

#include "core/ops/decode/decode.h"
#include "core/ops/kda/kda.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/short_conv/short_conv.h"
#include "model/views.h"

namespace lamina::model {

Kda::Weight Kda::weight(Parameters& parameters, const std::string& name) {
  const int index = parameters.index_of(name);
  used_.push_back(index);
  return {parameters.value(index), parameters.gradient(index)};
}

Kda::Weight Kda::fused(Parameters& parameters, const std::string& prefix, const std::vector<const char*>& names) {
  for (const char* name : names) used_.push_back(parameters.index_of(prefix + name + ".weight"));
  const std::string first = prefix + names.front() + ".weight", last = prefix + names.back() + ".weight";
  return {parameters.fused_value(first, last), parameters.fused_gradient(first, last)};
}

Kda::Kda(const ModelConfig& c, Parameters& parameters, int64_t layer)
    : layer_(layer),
      heads_(c.linear_num_heads),
      head_(c.linear_head_dim),
      width_(heads_ * head_),
      eps_(c.rms_norm_eps),
      scale_(1.0 / std::sqrt(static_cast<double>(c.linear_head_dim))),
      lower_bound_(c.gate_lower_bound) {
  const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
  in_ = fused(parameters, prefix, {"q_proj", "k_proj", "v_proj", "f_a_proj", "g_a_proj", "b_proj"});
  f_b_ = weight(parameters, prefix + "f_b_proj.weight");
  g_b_ = weight(parameters, prefix + "g_b_proj.weight");
  conv_ = fused(parameters, prefix, {"q_conv1d", "k_conv1d", "v_conv1d"});
  a_log_ = weight(parameters, prefix + "A_log");
  for (TensorView* view : {&a_log_.value, &a_log_.gradient}) *view = view->reshaped({heads_});
  dt_bias_ = weight(parameters, prefix + "dt_bias");
  for (TensorView* view : {&dt_bias_.value, &dt_bias_.gradient}) *view = view->reshaped({heads_, head_});
  o_norm_ = weight(parameters, prefix + "o_norm.weight");
  o_ = weight(parameters, prefix + "o_proj.weight");
}

TensorView Kda::part(const TensorView& qkv, int64_t index) const {
  return heads_of(columns(qkv, index * width_, (index + 1) * width_), heads_, head_);
}

void Kda::project(ops::OpContext& ctx, TensorView x, Saved& saved, Arena& arena) const {
  const int64_t tokens = x.size(0);
  const DType dtype = in_.value.dtype;
  saved.projections = arena.take(dtype, {tokens, in_.value.size(0)});
  ops::linear(ctx, x, in_.value, saved.projections);
  saved.f = arena.take(dtype, {tokens, width_});
  ops::linear(ctx, columns(saved.projections, rank_column(0), rank_column(1)), f_b_.value, saved.f);
  saved.gate = arena.take(dtype, {tokens, width_});
  ops::linear(ctx, columns(saved.projections, rank_column(1), rank_column(2)), g_b_.value, saved.gate);
}

// What the recurrence takes: queries, keys, values, decays and write strengths.
void Kda::convolve(ops::OpContext& ctx, const Batch& batch, Saved& saved, Arena& arena) const {
  const int64_t tokens = batch.num_tokens();
  const DType dtype = in_.value.dtype, acc = accumulation_dtype(dtype);
  saved.qkv = arena.take(dtype, {tokens, 3 * width_});
  if (batch.runs.empty())
    ops::short_conv_forward(ctx, {per_sequence(columns(saved.projections, 0, 3 * width_), batch), conv_.value,
                                  batch.document_starts, per_sequence(saved.qkv, batch)});
  else
    convolve_runs(ctx, batch, saved);
  saved.qk_rstd = arena.take(acc, {tokens, 2 * heads_});
  const TensorView qk = heads_of(columns(saved.qkv, 0, 2 * width_), 2 * heads_, head_);
  ops::l2_norm_forward(ctx, {qk, 1e-6, qk, saved.qk_rstd});
  saved.g = arena.take(acc, {tokens, heads_, head_});
  saved.beta = arena.take(acc, {tokens, heads_});
  ops::kda_gate_forward(ctx,
                        {heads_of(saved.f, heads_, head_), dt_bias_.value, a_log_.value, lower_bound_,
                         columns(saved.projections, rank_column(2), rank_column(2) + heads_), saved.g, saved.beta});
}

// The recurrence and the gated norm, whose result is returned, in scratch.
TensorView Kda::attend(ops::OpContext& ctx, const Batch& batch, Saved& saved, Arena& arena) const {
  const int64_t tokens = batch.num_tokens();
  const DType dtype = in_.value.dtype, acc = accumulation_dtype(dtype);
  saved.o = arena.take(dtype, {tokens, width_});
  saved.o_rstd = arena.take(acc, {tokens, heads_});
  if (batch.runs.empty())
    ops::kda_forward(ctx, {per_sequence(part(saved.qkv, 0), batch),
                           per_sequence(part(saved.qkv, 1), batch),
                           per_sequence(part(saved.qkv, 2), batch),
                           per_sequence(saved.g, batch),
                           per_sequence(saved.beta, batch),
                           scale_,
                           batch.document_starts,
                           {},
                           per_head(saved.o, batch, heads_, head_),
                           {}});
  else
    mix_runs(ctx, batch, saved);
  const TensorView y = ctx.scratch.take(dtype, {tokens, width_});
  ops::gated_rms_norm_forward(
      ctx, {heads_of(saved.o, heads_, head_), o_norm_.value, heads_of(saved.gate, heads_, head_), eps_,
            heads_of(y, heads_, head_), saved.o_rstd});
  return y;
}

// A run of several tokens is convolved behind its sequence's last inputs; those outputs are thrown away.
void Kda::convolve_runs(ops::OpContext& ctx, const Batch& batch, Saved& saved) const {
  const TensorView inputs = columns(saved.projections, 0, 3 * width_);
  const int64_t kept = conv_.value.size(1) - 1;
  for_runs(
      batch.runs,
      [&](std::span<const SequenceRun> steps) {
        const Rows rows = rows_of(steps);
        std::vector<TensorView> tails;
        for (const SequenceRun& run : steps) tails.push_back(run.sequence->conv_tail(layer_));
        ops::short_conv_step(
            ctx, {inputs.slice(0, rows.begin, rows.end), conv_.value, tails, saved.qkv.slice(0, rows.begin, rows.end)});
      },
      [&](const SequenceRun& run) {
        const ArenaScope scope(ctx.scratch);
        const TensorView tail = run.sequence->conv_tail(layer_);
        const TensorView window = ctx.scratch.take(inputs.dtype, {1, kept + run.count, 3 * width_});
        const TensorView mixed = ctx.scratch.take(inputs.dtype, window.shape), rows = window.select(0, 0);
        const int64_t begin = run.begin, end = run.begin + run.count;
        const std::array inside = {tail, inputs.slice(0, begin, end)},
                         in_window = {rows.slice(0, 0, kept), rows.slice(0, kept, kept + run.count)};
        ops::copy_rows(ctx, {inside, in_window});
        ops::short_conv_forward(ctx, {window, conv_.value, {}, mixed});
        const std::array made = {mixed.select(0, 0).slice(0, kept, kept + run.count),
                                 rows.slice(0, run.count, run.count + kept)},
                         wanted = {saved.qkv.slice(0, begin, end), tail};
        ops::copy_rows(ctx, {made, wanted});
      });
}

void Kda::mix_runs(ops::OpContext& ctx, const Batch& batch, Saved& saved) const {
  const TensorView o = heads_of(saved.o, heads_, head_);
  for_runs(
      batch.runs,
      [&](std::span<const SequenceRun> steps) {
        const Rows rows = rows_of(steps);
        const auto cut = [&](const TensorView& view) { return view.slice(0, rows.begin, rows.end); };
        std::vector<TensorView> states;
        for (const SequenceRun& run : steps) states.push_back(run.sequence->kda_state(layer_));
        ops::kda_step(ctx, {cut(part(saved.qkv, 0)), cut(part(saved.qkv, 1)), cut(part(saved.qkv, 2)), cut(saved.g),
                            cut(saved.beta), scale_, states, cut(o)});
      },
      [&](const SequenceRun& run) {
        const Batch own{1, run.count};
        const auto cut = [&](const TensorView& view) {
          return per_sequence(view.slice(0, run.begin, run.begin + run.count), own);
        };
        const TensorView state = run.sequence->kda_state(layer_).reshaped({1, heads_, head_, head_});
        ops::kda_forward(ctx, {cut(part(saved.qkv, 0)),
                               cut(part(saved.qkv, 1)),
                               cut(part(saved.qkv, 2)),
                               cut(saved.g),
                               cut(saved.beta),
                               scale_,
                               {},
                               state,
                               cut(o),
                               state});
      });
}

void Kda::forward(ops::OpContext& ctx, const Batch& batch, TensorView x, TensorView y, Saved& saved,
                  ActivationArenas arenas) const {
  project(ctx, x, saved, arenas.expensive);
  convolve(ctx, batch, saved, arenas.cheap);
  const TensorView normed = attend(ctx, batch, saved, arenas.expensive);
  ops::linear(ctx, normed, o_.value, y);
}

void Kda::recompute(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Recompute mode,
                    Arena& temporary) const {
  if (mode == Recompute::none) return;
  if (mode == Recompute::full) project(ctx, x, saved, temporary);
  convolve(ctx, batch, saved, temporary);
  if (mode == Recompute::full) attend(ctx, batch, saved, temporary);
}

// Through the output projection and the gated norm.
void Kda::output_backward(ops::OpContext& ctx, const Saved& saved, TensorView dy, TensorView d_o, TensorView d_gate,
                          WeightGradients& weights) const {
  const TensorView y = weights.operands(ctx).take(d_o.dtype, d_o.shape);
  ops::linear_input_gradient(ctx, dy, o_.value, d_o, ops::GradMode::overwrite);
  const auto heads = [&](const TensorView& view) { return heads_of(view, heads_, head_); };
  ops::gated_rms_norm_backward(ctx, {heads(saved.o), o_norm_.value, heads(saved.gate), saved.o_rstd, heads(d_o),
                                     heads(d_o), heads(d_gate), o_norm_.gradient, heads(y)});
  weights.add(ctx, dy, y, o_.gradient);
}

// Through the recurrence, norms, convolutions and gates, into d_in's columns of q, k, v and beta, and df.
void Kda::mixing_backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView d_o, TensorView d_in,
                          TensorView df) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t tokens = batch.num_tokens();
  const DType dtype = in_.value.dtype, acc = accumulation_dtype(dtype);
  const TensorView d_qkv = ctx.scratch.take(dtype, {tokens, 3 * width_});
  const TensorView dg = ctx.scratch.take(acc, saved.g.shape), dbeta = ctx.scratch.take(acc, saved.beta.shape);
  const auto sequences = [&](const TensorView& qkv, int64_t index) { return per_sequence(part(qkv, index), batch); };
  ops::KdaBackward mix{sequences(saved.qkv, 0),
                       sequences(saved.qkv, 1),
                       sequences(saved.qkv, 2),
                       per_sequence(saved.g, batch),
                       per_sequence(saved.beta, batch),
                       scale_,
                       batch.document_starts,
                       {},
                       per_head(d_o, batch, heads_, head_),
                       {},
                       sequences(d_qkv, 0),
                       sequences(d_qkv, 1),
                       sequences(d_qkv, 2),
                       per_sequence(dg, batch),
                       per_sequence(dbeta, batch),
                       {}};
  ops::kda_backward(ctx, mix);
  const TensorView qk = heads_of(columns(saved.qkv, 0, 2 * width_), 2 * heads_, head_);
  const TensorView d_qk = heads_of(columns(d_qkv, 0, 2 * width_), 2 * heads_, head_);
  ops::l2_norm_backward(ctx, {qk, saved.qk_rstd, d_qk, d_qk});
  ops::short_conv_backward(
      ctx, {per_sequence(columns(saved.projections, 0, 3 * width_), batch), conv_.value, batch.document_starts,
            per_sequence(d_qkv, batch), per_sequence(columns(d_in, 0, 3 * width_), batch), conv_.gradient});
  ops::kda_gate_backward(
      ctx, {heads_of(saved.f, heads_, head_), dt_bias_.value, a_log_.value, lower_bound_, saved.beta, dg, dbeta,
            heads_of(df, heads_, head_), columns(d_in, rank_column(2), rank_column(2) + heads_), dt_bias_.gradient,
            a_log_.gradient});
}

void Kda::backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView dy,
                   TensorView dx, WeightGradients& weights) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t tokens = batch.num_tokens();
  const DType dtype = in_.value.dtype;
  Arena& operands = weights.operands(ctx);
  const TensorView d_in = operands.take(dtype, {tokens, in_.value.size(0)});
  const TensorView df = operands.take(dtype, {tokens, width_}), d_gate = operands.take(dtype, {tokens, width_});
  const TensorView d_o = ctx.scratch.take(dtype, {tokens, width_});
  output_backward(ctx, saved, dy, d_o, d_gate, weights);
  mixing_backward(ctx, batch, saved, d_o, d_in, df);
  const auto low_rank_backward = [&](const TensorView& d, const Weight& w, int64_t index) {
    ops::linear_input_gradient(ctx, d, w.value, columns(d_in, rank_column(index), rank_column(index + 1)),
                               ops::GradMode::overwrite);
    weights.add(ctx, d, columns(saved.projections, rank_column(index), rank_column(index + 1)), w.gradient);
  };
  low_rank_backward(df, f_b_, 0);
  low_rank_backward(d_gate, g_b_, 1);
  ops::linear_input_gradient(ctx, d_in, in_.value, dx, ops::GradMode::overwrite);
  weights.add(ctx, d_in, x, in_.gradient);
}

}  // namespace lamina::model
