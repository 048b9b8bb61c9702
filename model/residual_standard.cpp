#include "core/ops/elementwise/elementwise.h"
#include "core/ops/rms_norm/rms_norm.h"
#include "model/residual_passes.h"

namespace lamina::model {

StandardPass::StandardPass(const ResidualOptions& options, const ChunkRange& range, const std::vector<Site>& sites,
                           ResidualWorkspace& workspace)
    : sites_(sites),
      workspace_(workspace),
      range_(range),
      hidden_size_(options.config.hidden_size),
      dtype_(options.dtype),
      keep_inputs_(options.recompute == Recompute::none),
      stream_(sites.size()),
      rstd_(sites.size()),
      input_(sites.size()) {}

void StandardPass::begin_forward(const Batch& batch, Arena& keep, const Streams& streams, const Summaries&) {
  keep_ = &keep;
  tokens_ = batch.num_tokens();
  streams_ = streams;
  workspace_.transient.reset();
  output_ = workspace_.transient.take(dtype_, {tokens_, hidden_size_});
  // One normalised input is alive at a time unless they are kept; the last one is also the head's input.
  normalised_ = workspace_.transient.take(dtype_, {tokens_, hidden_size_});
}

TensorView StandardPass::read(ops::OpContext& ctx, int site) {
  const size_t s = local(site);
  const bool keep_input = keep_inputs_ && site < range_.end;
  rstd_[s] = keep_->take(accumulation_dtype(dtype_), {tokens_});
  input_[s] = keep_input ? keep_->take(dtype_, {tokens_, hidden_size_}) : normalised_;
  if (site == range_.begin) stream_[s] = streams_.in;
  ops::RmsNormForward args{stream_[s], sites_[s].norm_weight, sites_[s].norm_eps, input_[s], rstd_[s], {}, {}};
  if (site > range_.begin) {
    stream_[s] = keep_->take(dtype_, {tokens_, hidden_size_});
    args.x = stream_[s - 1];
    args.delta = output_;
    args.sum = stream_[s];
  }
  ops::rms_norm_forward(ctx, args);
  return input_[s];
}

TensorView StandardPass::output_buffer(int) {
  return output_;
}

void StandardPass::finish_stream(ops::OpContext& ctx) {
  if (range_.begin < range_.end) ops::add(ctx, {stream_[local(range_.end - 1)], output_, streams_.out});
}

void StandardPass::begin_backward() {
  workspace_.transient.reset();
  d_stream_ = workspace_.transient.take(accumulation_dtype(dtype_), {tokens_, hidden_size_});
  d_output_ = workspace_.transient.take(dtype_, {tokens_, hidden_size_});
}

TensorView StandardPass::reread(ops::OpContext& ctx, int site, Arena& room) {
  const size_t s = local(site);
  if (!keep_inputs_) {
    input_[s] = room.take(dtype_, {tokens_, hidden_size_});
    ops::rms_norm_apply(ctx, {stream_[s], sites_[s].norm_weight, rstd_[s], input_[s]});
  }
  return input_[s];
}

TensorView StandardPass::output_gradient(ops::OpContext& ctx, int) {
  if (dtype_ == d_stream_.dtype) return d_stream_;
  ops::cast(ctx, {d_stream_, d_output_});
  return d_output_;
}

void StandardPass::read_backward(ops::OpContext& ctx, int site, TensorView dx) {
  const size_t s = local(site);
  const bool first = site == range_.end;  // the output site
  ops::rms_norm_backward(ctx, {stream_[s], sites_[s].norm_weight, rstd_[s], dx, d_stream_,
                               first ? ops::GradMode::overwrite : ops::GradMode::accumulate, sites_[s].d_norm_weight});
}

}  // namespace lamina::model
