#include "core/ops/elementwise/elementwise.h"
#include "core/ops/hyper_connections/hyper_connections.h"
#include "core/ops/matmul/matmul.h"
#include "core/ops/rms_norm/rms_norm.h"
#include "model/residual_passes.h"

namespace lamina::model {

MhcPass::MhcPass(const ResidualOptions& options, const ChunkRange& range, const std::vector<Site>& sites,
                 ResidualWorkspace& workspace)
    : sites_(sites),
      workspace_(workspace),
      range_(range),
      hidden_size_(options.config.hidden_size),
      num_streams_(options.config.num_streams()),
      eps_(options.config.rms_norm_eps),
      dtype_(options.dtype),
      acc_(accumulation_dtype(options.dtype)),
      keep_inputs_(options.recompute == Recompute::none),
      state_(sites.size()) {}

void MhcPass::begin_forward(const Batch& batch, Arena& keep, const Streams& streams, const Summaries&) {
  keep_ = &keep;
  tokens_ = batch.num_tokens();
  streams_ = streams;
  Arena& arena = workspace_.transient;
  arena.reset();
  h_ = arena.take(dtype_, row());
  x_ = arena.take(dtype_, row());
  if (range_.index == 0) embedding_ = arena.take(dtype_, row());
}

void MhcPass::embed(ops::OpContext& ctx) {
  ops::hyper_expand(ctx, {embedding_, 1.0, streams_.in});
}

TensorView MhcPass::in_acc(ops::OpContext& ctx, const TensorView& streams) const {
  if (dtype_ == acc_) return streams;
  const TensorView wider = ctx.scratch.take(acc_, streams.shape);
  ops::cast(ctx, {streams, wider});
  return wider;
}

// The coefficients of a sublayer, and h.
void MhcPass::mix(ops::OpContext& ctx, int site) {
  const ArenaScope scope(ctx.scratch);
  SiteState& s = state_[local(site)];
  const StreamMixing& mixing = sites_[local(site)].mixing;
  s.projected = keep_->take(acc_, {tokens_, ops::num_projections(num_streams_)});
  s.rstd = keep_->take(acc_, {tokens_});
  s.coefficients = keep_->take(acc_, {tokens_, ops::num_coefficients(num_streams_)});
  ops::linear(ctx, in_acc(ctx, s.streams), mixing.weight, s.projected);
  ops::hyper_coefficients_forward(
      ctx, {s.streams, s.projected, mixing.alpha, mixing.bias, num_streams_, eps_, s.rstd, s.coefficients});
  ops::hyper_read(ctx, {s.streams, s.coefficients, num_streams_, s.h});
}

void MhcPass::write(ops::OpContext& ctx, int site, const TensorView& next) {
  const SiteState& s = state_[local(site)];
  ops::hyper_write(ctx, {s.streams, s.coefficients, num_streams_, s.output, next});
}

void MhcPass::mean(ops::OpContext& ctx, SiteState& s) {
  s.h = h_;
  ops::hyper_reduce(ctx, {s.streams, 1.0 / static_cast<double>(num_streams_), s.h});
}

TensorView MhcPass::read(ops::OpContext& ctx, int site) {
  SiteState& s = state_[local(site)];
  const bool keep_input = keep_inputs_ && !is_output(site);  // the head takes its input at once
  s.streams = streams_.in;
  if (site > range_.begin) {
    s.streams = keep_->take(dtype_, wide());
    write(ctx, site - 1, s.streams);
  }
  s.h = keep_input ? keep_->take(dtype_, row()) : h_;
  s.x = keep_input ? keep_->take(dtype_, row()) : x_;
  s.h_rstd = keep_->take(acc_, {tokens_});
  if (is_output(site))
    mean(ctx, s);
  else
    mix(ctx, site);
  const Site& own = sites_[local(site)];
  ops::rms_norm_forward(ctx, {s.h, own.norm_weight, own.norm_eps, s.x, s.h_rstd, {}, {}});
  return s.x;
}

TensorView MhcPass::output_buffer(int site) {
  // Backward needs it: H_post's gradient is a product with it, and no recomputation makes a sublayer's output again.
  state_[local(site)].output = keep_->take(dtype_, row());
  return state_[local(site)].output;
}

void MhcPass::finish_stream(ops::OpContext& ctx) {
  if (range_.begin < range_.end) write(ctx, range_.end - 1, streams_.out);
}

void MhcPass::begin_backward() {
  Arena& arena = workspace_.transient;
  arena.reset();
  h_ = arena.take(dtype_, row());
  d_output_ = arena.take(dtype_, row());
  dh_ = arena.take(acc_, row());
  d_streams_ = arena.take(acc_, wide());
  d_projected_ = arena.take(acc_, {tokens_, ops::num_projections(num_streams_)});
  d_coefficients_ = arena.take(acc_, {tokens_, ops::num_coefficients(num_streams_)});
}

TensorView MhcPass::reread(ops::OpContext& ctx, int site, Arena& room) {
  SiteState& s = state_[local(site)];
  if (keep_inputs_) return s.x;
  s.h = h_;
  s.x = room.take(dtype_, row());
  ops::hyper_read(ctx, {s.streams, s.coefficients, num_streams_, s.h});
  ops::rms_norm_apply(ctx, {s.h, sites_[local(site)].norm_weight, s.h_rstd, s.x});
  return s.x;
}

TensorView MhcPass::output_gradient(ops::OpContext& ctx, int site) {
  ops::hyper_output_gradient(ctx, {d_streams_, state_[local(site)].coefficients, num_streams_, d_output_});
  return d_output_;
}

void MhcPass::read_backward(ops::OpContext& ctx, int site, TensorView dx) {
  SiteState& s = state_[local(site)];
  const Site& own = sites_[local(site)];
  if (is_output(site)) mean(ctx, s);
  ops::rms_norm_backward(ctx, {s.h, own.norm_weight, s.h_rstd, dx, dh_, ops::GradMode::overwrite, own.d_norm_weight});
  if (is_output(site)) {
    ops::hyper_expand(ctx, {dh_, 1.0 / static_cast<double>(num_streams_), d_streams_});
    return;
  }
  ops::hyper_backward(ctx, {s.streams, s.coefficients, num_streams_, s.output, dh_, d_streams_, d_coefficients_});
  ops::HyperCoefficientsBackward args;
  args.streams = s.streams;
  args.projected = s.projected;
  args.alpha = own.mixing.alpha;
  args.bias = own.mixing.bias;
  args.num_streams = num_streams_;
  args.rstd = s.rstd;
  args.coefficients = s.coefficients;
  args.dcoefficients = d_coefficients_;
  args.dprojected = d_projected_;
  args.dstreams = d_streams_;
  args.dalpha = own.d_mixing.alpha;
  args.dbias = own.d_mixing.bias;
  ops::hyper_coefficients_backward(ctx, args);
  ops::linear_input_gradient(ctx, d_projected_, own.mixing.weight, d_streams_, ops::GradMode::accumulate);
  const ArenaScope scope(ctx.scratch);
  ops::linear_weight_gradient(ctx, d_projected_, in_acc(ctx, s.streams), own.d_mixing.weight);
}

TensorView MhcPass::embedding_gradient(ops::OpContext& ctx) {
  ops::hyper_reduce(ctx, {d_streams_, 1.0, dh_});
  return dh_;
}

}  // namespace lamina::model
