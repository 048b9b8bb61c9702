#include <algorithm>

#include "core/ops/elementwise.h"
#include "core/ops/rms_norm.h"
#include "model/residual_passes.h"

namespace lamina::model {

int BlockLayout::block_of(int sublayer) const {
  const auto after = std::upper_bound(begin.begin(), begin.end() - 1, sublayer);
  return static_cast<int>(after - begin.begin()) - 1;
}

BlockLayout make_block_layout(const ModelConfig& config) {
  const auto num_sublayers = static_cast<int>(2 * config.num_hidden_layers);
  const int per_block =
      config.residual == Residual::full_attnres ? 1 : static_cast<int>(2 * config.attn_res_block_size);
  BlockLayout layout;
  for (int begin = 0; begin < num_sublayers; begin += per_block) layout.begin.push_back(begin);
  layout.begin.push_back(num_sublayers);
  return layout;
}

std::unique_ptr<ResidualPass> make_residual_pass(const ResidualOptions& options, const std::vector<Site>& sites) {
  if (options.config.residual == Residual::standard) return std::make_unique<StandardPass>(options, sites);
  return std::make_unique<AttnResPass>(options, sites);
}

AttnResPass::AttnResPass(const ResidualOptions& options, const std::vector<Site>& sites)
    : sites_(sites),
      blocks_(make_block_layout(options.config)),
      num_sublayers_(static_cast<int>(sites.size()) - 1),
      hidden_size_(options.config.hidden_size),
      eps_(options.config.rms_norm_eps),
      dtype_(options.dtype),
      acc_(accumulation_dtype(options.dtype)),
      keep_inputs_(options.recompute == Recompute::none),
      transient_(options.device, options.ledger, "activations"),
      block_arena_(options.device, options.ledger, "activations"),
      sites_state_(sites.size()),
      block_state_(static_cast<size_t>(blocks_.num_blocks())),
      summary_(static_cast<size_t>(blocks_.num_blocks())),
      d_summary_(summary_.size()),
      d_summary_mode_(summary_.size()) {
  LAMINA_CHECK(blocks_.begin.back() == num_sublayers_, "{} sublayers, {} sites", blocks_.begin.back(), sites.size());
  // Site 0 has one source and bypasses the read; the output site is read with the last block.
  for (int site = 1; site <= num_sublayers_; ++site)
    block_state_[static_cast<size_t>(block_of_site(site))].queries.push_back(site);
  for (BlockState& block : block_state_) block.mean.resize(block.queries.size());
}

int AttnResPass::block_of_site(int site) const {
  return blocks_.block_of(std::min(site, num_sublayers_ - 1));
}

void AttnResPass::begin(const BatchShape& batch, Arena& keep) {
  keep_ = &keep;
  tokens_ = batch.num_tokens();
  transient_.reset();
  block_arena_.reset();
  open_block_ = -1;
  const Shape shape{tokens_, hidden_size_};
  output_ = transient_.take(dtype_, shape);
  h_ = transient_.take(dtype_, shape);
  x_ = transient_.take(dtype_, shape);
  d_partial_ = transient_.take(acc_, shape);
  d_output_ = transient_.take(dtype_, shape);
  for (size_t b = 0; b < summary_.size(); ++b) {
    d_summary_[b] = transient_.take(acc_, shape);
    d_summary_mode_[b] = ops::GradMode::overwrite;
  }
}

TensorView AttnResPass::embedding_buffer() {
  summary_[0] = keep_->take(dtype_, {tokens_, hidden_size_});
  return summary_[0];
}

TensorView AttnResPass::output_buffer(int site) {
  // The first output of a block is its partial sum, and backward needs that; later ones are added on the next read.
  if (!blocks_.opens_block(site)) return output_;
  sites_state_[static_cast<size_t>(site) + 1].partial = keep_->take(dtype_, {tokens_, hidden_size_});
  return sites_state_[static_cast<size_t>(site) + 1].partial;
}

void AttnResPass::phase1(ops::OpContext& ctx, int block, bool save_statistics) {
  BlockState& state = block_state_[static_cast<size_t>(block)];
  block_arena_.reset();
  open_block_ = block;
  if (state.queries.empty()) return;
  const auto num_queries = static_cast<int64_t>(state.queries.size());
  const int64_t num_sources = block + 1;
  if (save_statistics) {
    state.rstd = keep_->take(acc_, {num_sources, tokens_});
    state.logit = keep_->take(acc_, {num_queries, num_sources, tokens_});
    state.lse = keep_->take(acc_, {num_queries, tokens_});
  }
  query_list_.clear();
  for (size_t q = 0; q < state.queries.size(); ++q) {
    query_list_.push_back(sites_[static_cast<size_t>(state.queries[q])].query);
    state.mean[q] = block_arena_.take(dtype_, {tokens_, hidden_size_});
  }
  ops::attn_res_phase1_forward(ctx, {std::span(summary_).first(static_cast<size_t>(num_sources)), query_list_, eps_,
                                     state.mean, state.rstd, state.logit, state.lse});
}

void AttnResPass::merge(ops::OpContext& ctx, int site, TensorView delta, TensorView h, TensorView x,
                        bool save_statistics) {
  const auto s = static_cast<size_t>(site);
  SiteState& state = sites_state_[s];
  const BlockState& block = block_state_[static_cast<size_t>(block_of_site(site))];
  const auto q = std::find(block.queries.begin(), block.queries.end(), site) - block.queries.begin();
  if (save_statistics) {
    state.h_rstd = keep_->take(acc_, {tokens_});
    state.lse_total = keep_->take(acc_, {tokens_});
    if (state.partial) {
      state.partial_rstd = keep_->take(acc_, {tokens_});
      state.partial_logit = keep_->take(acc_, {tokens_});
    }
  }
  ops::AttnResMergeForward args;
  args.mean = block.mean[static_cast<size_t>(q)];
  args.lse = block.lse.select(0, q);
  args.partial = delta ? sites_state_[s - 1].partial : state.partial;
  args.delta = delta;
  if (delta) args.partial_sum = state.partial;
  args.query = sites_[s].query;
  args.eps = eps_;
  args.norm_weight = sites_[s].norm_weight;
  args.norm_eps = sites_[s].norm_eps;
  args.h = h;
  args.y = x;
  args.partial_rstd = state.partial_rstd;
  args.partial_logit = state.partial_logit;
  args.lse_total = state.lse_total;
  args.h_rstd = state.h_rstd;
  ops::attn_res_merge_forward(ctx, args);
}

void AttnResPass::read_identity(ops::OpContext& ctx) {
  SiteState& state = sites_state_[0];
  state.h = summary_[0];
  state.h_rstd = keep_->take(acc_, {tokens_});
  ops::rms_norm_forward(ctx, {state.h, sites_[0].norm_weight, sites_[0].norm_eps, state.x, state.h_rstd, {}, {}});
}

void AttnResPass::close_block(ops::OpContext& ctx, int last) {
  const auto s = static_cast<size_t>(last);
  TensorView& summary = summary_[static_cast<size_t>(blocks_.block_of(last)) + 1];
  if (blocks_.opens_block(last)) {  // a block of one sublayer: the sum is that sublayer's output
    summary = sites_state_[s + 1].partial;
    return;
  }
  summary = keep_->take(dtype_, {tokens_, hidden_size_});
  ops::add(ctx, {sites_state_[s].partial, output_, summary});
}

TensorView AttnResPass::read(ops::OpContext& ctx, int site) {
  const auto s = static_cast<size_t>(site);
  SiteState& state = sites_state_[s];
  const int block = block_of_site(site);
  const bool keep_input = keep_inputs_ && site < num_sublayers_;  // the head takes its input at once
  state.x = keep_input ? keep_->take(dtype_, {tokens_, hidden_size_}) : x_;
  TensorView delta;
  if (blocks_.opens_block(site)) {
    if (block > 0) close_block(ctx, site - 1);
    state.partial = {};
    phase1(ctx, block, true);
  } else if (!blocks_.opens_block(site - 1)) {
    delta = output_;
    state.partial = keep_->take(dtype_, {tokens_, hidden_size_});
  }
  if (site == 0) {
    read_identity(ctx);
    return state.x;
  }
  state.h = keep_inputs_ ? keep_->take(dtype_, {tokens_, hidden_size_}) : h_;
  merge(ctx, site, delta, state.h, state.x, true);
  return state.x;
}

TensorView AttnResPass::reread(ops::OpContext& ctx, int site) {
  SiteState& state = sites_state_[static_cast<size_t>(site)];
  if (keep_inputs_) return state.x;
  const int block = block_of_site(site);
  state.x = ctx.scratch.take(dtype_, {tokens_, hidden_size_});
  if (site == 0) {
    ops::rms_norm_apply(ctx, {state.h, sites_[0].norm_weight, state.h_rstd, state.x});
    return state.x;
  }
  if (open_block_ != block) phase1(ctx, block, false);
  state.h = h_;
  merge(ctx, site, {}, state.h, state.x, false);
  return state.x;
}

TensorView AttnResPass::output_gradient(ops::OpContext& ctx, int) {
  if (dtype_ == acc_) return d_open_;
  ops::cast(ctx, {d_open_, d_output_});
  return d_output_;
}

void AttnResPass::read_backward(ops::OpContext& ctx, int site, TensorView dx) {
  const auto s = static_cast<size_t>(site);
  SiteState& state = sites_state_[s];
  const int block = block_of_site(site);
  if (site == num_sublayers_) {
    d_open_ = d_partial_;
  } else if (open_block_ != block) {  // nothing of this block was made again: only room for dh is needed
    block_arena_.reset();
    open_block_ = block;
  }
  if (site == 0) {
    ops::rms_norm_backward(ctx, {state.h, sites_[0].norm_weight, state.h_rstd, dx, d_summary_[0], d_summary_mode_[0],
                                 sites_[0].d_norm_weight});
    d_summary_mode_[0] = ops::GradMode::accumulate;
  } else {
    merge_backward(ctx, site, dx);
  }
  if (!blocks_.opens_block(site)) return;
  phase1_backward(ctx, block);
  // Every reader of the block before this one is done: the gradient of its sum is complete.
  if (block > 0) d_open_ = d_summary_[static_cast<size_t>(block)];
}

void AttnResPass::merge_backward(ops::OpContext& ctx, int site, TensorView dx) {
  const auto s = static_cast<size_t>(site);
  SiteState& state = sites_state_[s];
  state.dh = block_arena_.take(dtype_, {tokens_, hidden_size_});
  state.dh_dot_h = block_arena_.take(acc_, {tokens_});
  ops::AttnResMergeBackward args;
  args.h = state.h;
  args.h_rstd = state.h_rstd;
  args.norm_weight = sites_[s].norm_weight;
  args.dy = dx;
  args.partial = state.partial;
  args.partial_rstd = state.partial_rstd;
  args.partial_logit = state.partial_logit;
  args.lse_total = state.lse_total;
  args.query = sites_[s].query;
  args.dh = state.dh;
  args.dh_dot_h = state.dh_dot_h;
  if (state.partial) args.dpartial = d_open_;
  args.dpartial_mode = site == num_sublayers_ ? ops::GradMode::overwrite : ops::GradMode::accumulate;
  args.dnorm_weight = sites_[s].d_norm_weight;
  args.dquery = sites_[s].d_query;
  ops::attn_res_merge_backward(ctx, args);
}

void AttnResPass::phase1_backward(ops::OpContext& ctx, int block) {
  const BlockState& state = block_state_[static_cast<size_t>(block)];
  if (state.queries.empty()) return;
  const auto num_sources = static_cast<size_t>(block) + 1;
  query_list_.clear();
  d_query_list_.clear();
  lse_list_.clear();
  dh_list_.clear();
  dot_list_.clear();
  for (int site : state.queries) {
    const auto s = static_cast<size_t>(site);
    query_list_.push_back(sites_[s].query);
    d_query_list_.push_back(sites_[s].d_query);
    lse_list_.push_back(sites_state_[s].lse_total);
    dh_list_.push_back(sites_state_[s].dh);
    dot_list_.push_back(sites_state_[s].dh_dot_h);
  }
  ops::attn_res_phase1_backward(ctx, {std::span(summary_).first(num_sources), query_list_, state.rstd, state.logit,
                                      lse_list_, dh_list_, dot_list_, std::span(d_summary_).first(num_sources),
                                      std::span(d_summary_mode_).first(num_sources), d_query_list_});
  for (size_t b = 0; b < num_sources; ++b) d_summary_mode_[b] = ops::GradMode::accumulate;
}

std::vector<double> AttnResPass::depth_weights(ops::OpContext& ctx, int site) const {
  if (site == 0) return {1.0};
  const SiteState& state = sites_state_[static_cast<size_t>(site)];
  const int block = block_of_site(site);
  const BlockState& block_state = block_state_[static_cast<size_t>(block)];
  const auto q = std::find(block_state.queries.begin(), block_state.queries.end(), site) - block_state.queries.begin();
  std::vector<double> weights(static_cast<size_t>(block) + (state.partial ? 2 : 1));
  const TensorView partial_logit = state.partial ? state.partial_logit : TensorView();
  ops::attn_res_depth_weights(ctx, {block_state.logit.select(0, q), partial_logit, state.lse_total, weights});
  return weights;
}

}  // namespace lamina::model
