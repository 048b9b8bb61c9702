#include "core/ops/elementwise.h"
#include "core/ops/rms_norm.h"
#include "model/residual_passes.h"

namespace lamina::model {

StandardPass::StandardPass(const ResidualOptions& options, const std::vector<Site>& sites)
    : sites_(sites),
      hidden_size_(options.config.hidden_size),
      dtype_(options.dtype),
      keep_inputs_(options.recompute == Recompute::none),
      transient_(options.device, options.ledger, "activations"),
      stream_(sites.size()),
      rstd_(sites.size()),
      input_(sites.size()) {}

void StandardPass::begin(const BatchShape& batch, Arena& keep) {
  keep_ = &keep;
  tokens_ = batch.num_tokens();
  transient_.reset();
  output_ = transient_.take(dtype_, {tokens_, hidden_size_});
  // One normalised input is alive at a time unless they are kept; the last one is also the head's input.
  normalised_ = transient_.take(dtype_, {tokens_, hidden_size_});
  d_stream_ = transient_.take(accumulation_dtype(dtype_), {tokens_, hidden_size_});
  d_output_ = transient_.take(dtype_, {tokens_, hidden_size_});
}

TensorView StandardPass::embedding_buffer() {
  stream_[0] = keep_->take(dtype_, {tokens_, hidden_size_});
  return stream_[0];
}

TensorView StandardPass::read(ops::OpContext& ctx, int site) {
  const auto s = static_cast<size_t>(site);
  const bool keep_input = keep_inputs_ && s + 1 < sites_.size();
  rstd_[s] = keep_->take(accumulation_dtype(dtype_), {tokens_});
  input_[s] = keep_input ? keep_->take(dtype_, {tokens_, hidden_size_}) : normalised_;
  ops::RmsNormForward args{stream_[s], sites_[s].norm_weight, sites_[s].norm_eps, input_[s], rstd_[s], {}, {}};
  if (site > 0) {
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

TensorView StandardPass::reread(ops::OpContext& ctx, int site) {
  const auto s = static_cast<size_t>(site);
  if (!keep_inputs_) {
    input_[s] = ctx.scratch.take(dtype_, {tokens_, hidden_size_});
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
  const auto s = static_cast<size_t>(site);
  const bool first = s + 1 == sites_.size();
  ops::rms_norm_backward(ctx, {stream_[s], sites_[s].norm_weight, rstd_[s], dx, d_stream_,
                               first ? ops::GradMode::overwrite : ops::GradMode::accumulate, sites_[s].d_norm_weight});
}

}  // namespace lamina::model
