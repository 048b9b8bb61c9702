#include "model/mla.h"

#include <cmath>

#include "core/ops/attention/attention.h"
#include "core/ops/decode/decode.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/rms_norm/rms_norm.h"
#include "model/views.h"

namespace lamina::model {
namespace {

// Parts of kv's rows: heads of [nope | v].
TensorView head_part(const TensorView& kv, int64_t heads, int64_t width, int64_t begin, int64_t end) {
  return heads_of(kv, heads, width).slice(2, begin, end);
}

}  // namespace

Mla::Weight Mla::weight(Parameters& parameters, const std::string& name) {
  const int index = parameters.index_of(name);
  used_.push_back(index);
  return {parameters.value(index), parameters.gradient(index)};
}

Mla::Mla(const ModelConfig& c, Parameters& parameters, int64_t layer)
    : layer_(layer),
      heads_(c.num_attention_heads),
      d_nope_(c.qk_nope_head_dim),
      d_shared_(c.qk_rope_head_dim),
      d_v_(c.v_head_dim),
      kv_rank_(c.kv_lora_rank),
      q_rank_(c.q_lora_rank.value_or(0)),
      eps_(c.rms_norm_eps),
      kv_eps_(c.kv_a_layernorm_eps),
      scale_(1.0 / std::sqrt(static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim))) {
  const std::string prefix = fmt::format("model.layers.{}.self_attn.", layer);
  const std::string first = prefix + (q_rank_ > 0 ? "q_a_proj.weight" : "q_proj.weight");
  const std::string last = prefix + "kv_a_proj_with_mqa.weight";
  weight(parameters, first);
  weight(parameters, last);
  in_ = {parameters.fused_value(first, last), parameters.fused_gradient(first, last)};
  if (q_rank_ > 0) {
    q_norm_ = weight(parameters, prefix + "q_a_layernorm.weight");
    q_b_ = weight(parameters, prefix + "q_b_proj.weight");
  }
  kv_norm_ = weight(parameters, prefix + "kv_a_layernorm.weight");
  kv_b_ = weight(parameters, prefix + "kv_b_proj.weight");
  o_ = weight(parameters, prefix + "o_proj.weight");
}

void Mla::key_value(ops::OpContext& ctx, int64_t tokens, Saved& saved, Arena& arena) const {
  saved.kv = arena.take(in_.value.dtype, {tokens, heads_ * (d_nope_ + d_v_)});
  ops::linear(ctx, saved.kv_norm, kv_b_.value, saved.kv);
  const TensorView k_nope = head_part(saved.kv, heads_, d_nope_ + d_v_, 0, d_nope_);
  if (d_shared_ == 0) {
    saved.k = k_nope;
    return;
  }
  const int64_t width = saved.projections.size(1);
  saved.k = arena.take(in_.value.dtype, {tokens, heads_, d_nope_ + d_shared_});
  ops::pack_shared_keys(ctx, {k_nope, columns(saved.projections, width - d_shared_, width), saved.k});
}

void Mla::intermediates(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, ActivationArenas arenas,
                        bool have_expensive) const {
  const int64_t tokens = batch.num_tokens(), d_qk = d_nope_ + d_shared_;
  const DType dtype = in_.value.dtype, acc = accumulation_dtype(dtype);
  const int64_t q_columns = q_rank_ > 0 ? q_rank_ : heads_ * d_qk;
  if (!have_expensive) {
    saved.projections = arenas.expensive.take(dtype, {tokens, in_.value.size(0)});
    ops::linear(ctx, x, in_.value, saved.projections);
    if (q_rank_ > 0)
      saved.q_rstd = arenas.expensive.take(acc, {tokens});
    else
      saved.q = columns(saved.projections, 0, heads_ * d_qk);
    saved.kv_rstd = arenas.expensive.take(acc, {tokens});
  }
  if (q_rank_ > 0) {
    const TensorView q_a = columns(saved.projections, 0, q_rank_);
    saved.q_norm = arenas.cheap.take(dtype, {tokens, q_rank_});
    if (have_expensive)
      ops::rms_norm_apply(ctx, {q_a, q_norm_.value, saved.q_rstd, saved.q_norm});
    else
      ops::rms_norm_forward(ctx, {q_a, q_norm_.value, eps_, saved.q_norm, saved.q_rstd, {}, {}});
    if (!have_expensive) {
      saved.q = arenas.expensive.take(dtype, {tokens, heads_ * d_qk});
      ops::linear(ctx, saved.q_norm, q_b_.value, saved.q);
    }
  }
  const TensorView latent = columns(saved.projections, q_columns, q_columns + kv_rank_);
  saved.kv_norm = arenas.cheap.take(dtype, {tokens, kv_rank_});
  if (have_expensive)
    ops::rms_norm_apply(ctx, {latent, kv_norm_.value, saved.kv_rstd, saved.kv_norm});
  else
    ops::rms_norm_forward(ctx, {latent, kv_norm_.value, kv_eps_, saved.kv_norm, saved.kv_rstd, {}, {}});
  if (!batch.runs.empty()) {
    saved.o = arenas.expensive.take(dtype, {tokens, heads_ * d_v_});
    return attend_runs(ctx, batch, saved);
  }
  key_value(ctx, tokens, saved, arenas.cheap);
  if (have_expensive) return;
  saved.o = arenas.expensive.take(dtype, {tokens, heads_ * d_v_});
  saved.lse = arenas.expensive.take(acc, {batch.num_sequences, heads_, batch.seq_len});
  const TensorView v = head_part(saved.kv, heads_, d_nope_ + d_v_, d_nope_, d_nope_ + d_v_);
  ops::attention_forward(
      ctx, {per_head(saved.q, batch, heads_, d_qk), per_sequence(saved.k, batch), per_sequence(v, batch), scale_,
            per_head(saved.o, batch, heads_, d_v_), saved.lse, batch.document_starts, batch.probes.max_logits});
}

// Adds the rows' latents to their sequences, then attends to all of each: a run of one token to the latents themselves, longer ones to
// keys and values made from them.
void Mla::attend_runs(ops::OpContext& ctx, const Batch& batch, const Saved& saved) const {
  const int64_t width = saved.projections.size(1);
  std::vector<TensorView> from, to;
  for (const SequenceRun& run : batch.runs) {
    const int64_t before = run.sequence->length();
    const TensorView latents = run.sequence->latents(layer_).slice(0, before, before + run.count);
    const auto rows = [&](const TensorView& view) { return view.slice(0, run.begin, run.begin + run.count); };
    from.push_back(rows(saved.kv_norm));
    to.push_back(columns(latents, 0, kv_rank_));
    from.push_back(rows(columns(saved.projections, width - d_shared_, width)));
    to.push_back(columns(latents, kv_rank_, kv_rank_ + d_shared_));
  }
  ops::copy_rows(ctx, {from, to});
  const TensorView q = heads_of(saved.q, heads_, d_nope_ + d_shared_), o = heads_of(saved.o, heads_, d_v_);
  for_runs(
      batch.runs,
      [&](std::span<const SequenceRun> steps) {
        const Rows rows = rows_of(steps);
        std::vector<TensorView> latents;
        for (const SequenceRun& run : steps)
          latents.push_back(run.sequence->latents(layer_).slice(0, 0, run.sequence->length() + 1));
        ops::latent_attention(
            ctx, {q.slice(0, rows.begin, rows.end), kv_b_.value, latents, scale_, o.slice(0, rows.begin, rows.end)});
      },
      [&](const SequenceRun& run) {
        const Rows rows = rows_of({&run, 1});
        attend_context(ctx, run, q.slice(0, rows.begin, rows.end), o.slice(0, rows.begin, rows.end));
      });
}

// So many heads at a time that their keys and values take bounded memory in a long context.
void Mla::attend_context(ops::OpContext& ctx, const SequenceRun& run, const TensorView& q, const TensorView& o) const {
  constexpr int64_t most_bytes = int64_t{256} << 20;
  const int64_t tokens = run.sequence->length() + run.count, d_kv = d_nope_ + d_v_, d_qk = d_nope_ + d_shared_;
  const int64_t group = std::clamp<int64_t>(most_bytes / (tokens * (d_kv + d_qk) * size_of(q.dtype)), 1, heads_);
  const TensorView latents = run.sequence->latents(layer_).slice(0, 0, tokens);
  const TensorView c = columns(latents, 0, kv_rank_), shared = columns(latents, kv_rank_, kv_rank_ + d_shared_);
  for (int64_t first = 0; first < heads_; first += group) {
    const ArenaScope scope(ctx.scratch);
    const int64_t last = std::min(first + group, heads_), heads = last - first;
    const Batch keys{1, tokens}, queries{1, run.count};
    const TensorView kv = ctx.scratch.take(q.dtype, {tokens, heads * d_kv});
    ops::linear(ctx, c, kv_b_.value.slice(0, first * d_kv, last * d_kv), kv);
    TensorView k = head_part(kv, heads, d_kv, 0, d_nope_);
    if (d_shared_ > 0) {
      const TensorView packed = ctx.scratch.take(q.dtype, {tokens, heads, d_qk});
      ops::pack_shared_keys(ctx, {k, shared, packed});
      k = packed;
    }
    const TensorView lse = ctx.scratch.take(accumulation_dtype(q.dtype), {1, heads, run.count});
    ops::attention_forward(ctx, {per_sequence(q.slice(1, first, last), queries), per_sequence(k, keys),
                                 per_sequence(head_part(kv, heads, d_kv, d_nope_, d_kv), keys), scale_,
                                 per_sequence(o.slice(1, first, last), queries), lse});
  }
}

void Mla::forward(ops::OpContext& ctx, const Batch& batch, TensorView x, TensorView y, Saved& saved,
                  ActivationArenas arenas) const {
  intermediates(ctx, batch, x, saved, arenas, false);
  ops::linear(ctx, saved.o, o_.value, y);
}

void Mla::recompute(ops::OpContext& ctx, const Batch& batch, TensorView x, Saved& saved, Recompute mode,
                    Arena& temporary) const {
  if (mode == Recompute::none) return;
  intermediates(ctx, batch, x, saved, {temporary, temporary}, mode == Recompute::selective);
}

void Mla::backward(ops::OpContext& ctx, const Batch& batch, const Saved& saved, TensorView x, TensorView dy,
                   TensorView dx, WeightGradients& weights) const {
  const ArenaScope scope(ctx.scratch);
  const int64_t tokens = batch.num_tokens(), d_qk = d_nope_ + d_shared_, d_kv = d_nope_ + d_v_;
  const DType dtype = in_.value.dtype;
  Arena& operands = weights.operands(ctx);
  const TensorView d_in = operands.take(dtype, {tokens, in_.value.size(0)});
  const TensorView d_kv_out = operands.take(dtype, {tokens, heads_ * d_kv});
  const TensorView dq = q_rank_ > 0 ? operands.take(dtype, {tokens, heads_ * d_qk}) : columns(d_in, 0, heads_ * d_qk);
  const TensorView dk_nope = head_part(d_kv_out, heads_, d_kv, 0, d_nope_);
  const TensorView dv = head_part(d_kv_out, heads_, d_kv, d_nope_, d_kv);
  {
    const ArenaScope attention_scope(ctx.scratch);
    const TensorView d_o = ctx.scratch.take(dtype, {tokens, heads_ * d_v_});
    ops::linear_input_gradient(ctx, dy, o_.value, d_o, ops::GradMode::overwrite);
    weights.add(ctx, dy, saved.o, o_.gradient);
    const TensorView dk = d_shared_ == 0 ? dk_nope : ctx.scratch.take(dtype, {tokens, heads_, d_qk});
    const TensorView v = head_part(saved.kv, heads_, d_kv, d_nope_, d_kv);
    ops::attention_backward(ctx, {per_head(saved.q, batch, heads_, d_qk), per_sequence(saved.k, batch),
                                  per_sequence(v, batch), scale_, per_head(saved.o, batch, heads_, d_v_), saved.lse,
                                  per_head(d_o, batch, heads_, d_v_), per_head(dq, batch, heads_, d_qk),
                                  per_sequence(dk, batch), per_sequence(dv, batch), batch.document_starts});
    if (d_shared_ > 0)
      ops::unpack_shared_keys(ctx, {dk, dk_nope, columns(d_in, d_in.size(1) - d_shared_, d_in.size(1))});
  }
  const int64_t q_columns = q_rank_ > 0 ? q_rank_ : heads_ * d_qk;
  {
    const ArenaScope kv_scope(ctx.scratch);
    const TensorView d_kv_norm = ctx.scratch.take(dtype, {tokens, kv_rank_});
    ops::linear_input_gradient(ctx, d_kv_out, kv_b_.value, d_kv_norm, ops::GradMode::overwrite);
    weights.add(ctx, d_kv_out, saved.kv_norm, kv_b_.gradient);
    ops::rms_norm_backward(
        ctx, {columns(saved.projections, q_columns, q_columns + kv_rank_), kv_norm_.value, saved.kv_rstd, d_kv_norm,
              columns(d_in, q_columns, q_columns + kv_rank_), ops::GradMode::overwrite, kv_norm_.gradient});
  }
  if (q_rank_ > 0) {
    const ArenaScope q_scope(ctx.scratch);
    const TensorView d_q_norm = ctx.scratch.take(dtype, {tokens, q_rank_});
    ops::linear_input_gradient(ctx, dq, q_b_.value, d_q_norm, ops::GradMode::overwrite);
    weights.add(ctx, dq, saved.q_norm, q_b_.gradient);
    ops::rms_norm_backward(ctx, {columns(saved.projections, 0, q_rank_), q_norm_.value, saved.q_rstd, d_q_norm,
                                 columns(d_in, 0, q_rank_), ops::GradMode::overwrite, q_norm_.gradient});
  }
  ops::linear_input_gradient(ctx, d_in, in_.value, dx, ops::GradMode::overwrite);
  weights.add(ctx, d_in, x, in_.gradient);
}

}  // namespace lamina::model
