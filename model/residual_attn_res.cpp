#include <algorithm>

#include "core/ops/elementwise/elementwise.h"
#include "core/ops/rms_norm/rms_norm.h"
#include "model/residual_passes.h"

namespace lamina::model {

std::unique_ptr<ResidualPass> make_residual_pass(const ResidualOptions& options, const ChunkRange& range,
                                                 const std::vector<Site>& sites, ResidualWorkspace& workspace) {
  LAMINA_CHECK(static_cast<int>(sites.size()) == range.num_sites(), "{} sites in a chunk of {}", sites.size(),
               range.num_sites());
  if (options.config.residual == Residual::standard)
    return std::make_unique<StandardPass>(options, range, sites, workspace);
  if (options.config.residual == Residual::mhc) return std::make_unique<MhcPass>(options, range, sites, workspace);
  return std::make_unique<AttnResPass>(options, range, sites, workspace);
}

int num_depth_weights(const pipeline::BlockLayout& blocks, int site) {
  if (blocks.num_blocks() == 0) return 0;
  const int num_sublayers = blocks.begin.back();
  const int num_summaries = blocks.block_of(std::min(site, num_sublayers - 1)) + 1;
  return num_summaries + (site == num_sublayers || !blocks.opens_block(site) ? 1 : 0);
}

int num_source_cosines(const pipeline::BlockLayout& blocks) {
  const int sources = blocks.num_blocks() == 0 ? 0 : blocks.num_blocks() + 1;
  return sources * (sources - 1) / 2;
}

AttnResPass::AttnResPass(const ResidualOptions& options, const ChunkRange& range, const std::vector<Site>& sites,
                         ResidualWorkspace& workspace)
    : sites_(sites),
      workspace_(workspace),
      range_(range),
      blocks_(pipeline::make_block_layout(options.config)),
      num_sublayers_(blocks_.begin.back()),
      first_block_(block_of_site(range.begin)),
      hidden_size_(options.config.hidden_size),
      eps_(options.config.rms_norm_eps),
      dtype_(options.dtype),
      acc_(accumulation_dtype(options.dtype)),
      keep_inputs_(options.recompute == Recompute::none),
      site_state_(sites.size()) {
  const int last_site = range.begin + range.num_sites() - 1;
  if (last_site < range.begin) return;  // the embedding alone
  const int num_parts = block_of_site(last_site) - first_block_ + 1;
  block_state_.resize(static_cast<size_t>(num_parts));
  // Site 0 has one source and bypasses the read; the output site is read with the last block.
  for (int site = std::max(range.begin, 1); site <= last_site; ++site)
    block_state(block_of_site(site)).queries.push_back(site);
  for (BlockState& block : block_state_) block.mean.resize(block.queries.size());
}

int AttnResPass::block_of_site(int site) const {
  return blocks_.block_of(std::min(site, num_sublayers_ - 1));
}

void AttnResPass::begin_forward(const Batch& batch, Arena& keep, const Streams& streams, const Summaries& summaries) {
  keep_ = &keep;
  tokens_ = batch.num_tokens();
  streams_ = streams;
  summaries_ = summaries;
  workspace_.owner = nullptr;
  take_transient();
}

void AttnResPass::take_transient() {
  Arena& arena = workspace_.transient;
  const Shape shape{tokens_, hidden_size_};
  arena.reset();
  output_ = arena.take(dtype_, shape);
  h_ = arena.take(dtype_, shape);
  x_ = arena.take(dtype_, shape);
  d_partial_ = arena.take(acc_, shape);
  d_output_ = arena.take(dtype_, shape);
}

void AttnResPass::open(int block) {
  workspace_.block.reset();
  workspace_.owner = this;
  workspace_.open_block = block;
}

TensorView AttnResPass::output_buffer(int site) {
  // The first output of a block is its partial sum, and backward needs that; later ones are added on the next read.
  if (!opens_block(site)) return output_;
  if (site + 1 == range_.end && !range_.is_last) return streams_.out;
  if (site + 1 < num_sublayers_ && opens_block(site + 1)) return summaries_.put(block_of_site(site) + 1);
  state(site + 1).partial = keep_->take(dtype_, {tokens_, hidden_size_});
  return state(site + 1).partial;
}

// In the first block the embedding stays where it is to be ablated: its reads have nothing else but the open sum.
std::span<const TensorView> AttnResPass::sources(int block) {
  source_list_.clear();
  for (int summary = 0; summary <= block; ++summary)
    if (summary != summaries_.ablated || block == 0) source_list_.push_back(summaries_.value(summary));
  return source_list_;
}

void AttnResPass::phase1(ops::OpContext& ctx, int block, bool save_statistics) {
  BlockState& part = block_state(block);
  open(block);
  if (part.queries.empty()) return;
  const std::span<const TensorView> seen = sources(block);
  const auto num_queries = static_cast<int64_t>(part.queries.size()), num_sources = static_cast<int64_t>(seen.size());
  if (save_statistics) {
    part.rstd = keep_->take(acc_, {num_sources, tokens_});
    part.logit = keep_->take(acc_, {num_queries, num_sources, tokens_});
    part.lse = keep_->take(acc_, {num_queries, tokens_});
  }
  query_list_.clear();
  for (size_t q = 0; q < part.queries.size(); ++q) {
    query_list_.push_back(site_at(part.queries[q]).query);
    part.mean[q] = workspace_.block.take(dtype_, {tokens_, hidden_size_});
  }
  ops::attn_res_phase1_forward(ctx, {seen, query_list_, eps_, part.mean, part.rstd, part.logit, part.lse});
}

void AttnResPass::merge(ops::OpContext& ctx, int site, TensorView delta, TensorView h, TensorView x,
                        bool save_statistics) {
  SiteState& s = state(site);
  const BlockState& block = block_state(block_of_site(site));
  const auto q = std::find(block.queries.begin(), block.queries.end(), site) - block.queries.begin();
  if (save_statistics) {
    s.h_rstd = keep_->take(acc_, {tokens_});
    s.lse_total = keep_->take(acc_, {tokens_});
    if (s.partial) {
      s.partial_rstd = keep_->take(acc_, {tokens_});
      s.partial_logit = keep_->take(acc_, {tokens_});
    }
  }
  ops::AttnResMergeForward args;
  args.mean = block.mean[static_cast<size_t>(q)];
  args.lse = block.lse.select(0, q);
  args.partial = delta ? state(site - 1).partial : s.partial;
  args.delta = delta;
  if (delta) args.partial_sum = s.partial;
  args.query = site_at(site).query;
  args.eps = eps_;
  args.norm_weight = site_at(site).norm_weight;
  args.norm_eps = site_at(site).norm_eps;
  args.h = h;
  args.y = x;
  args.partial_rstd = s.partial_rstd;
  args.partial_logit = s.partial_logit;
  args.lse_total = s.lse_total;
  args.h_rstd = s.h_rstd;
  ops::attn_res_merge_forward(ctx, args);
}

void AttnResPass::read_identity(ops::OpContext& ctx) {
  SiteState& s = state(0);
  s.h = streams_.in;
  s.h_rstd = keep_->take(acc_, {tokens_});
  ops::rms_norm_forward(ctx, {s.h, site_at(0).norm_weight, site_at(0).norm_eps, s.x, s.h_rstd, {}, {}});
}

void AttnResPass::close_block(ops::OpContext& ctx, int last) {
  if (blocks_.opens_block(last)) return;  // a block of one sublayer, which wrote its summary
  ops::add(ctx, {state(last).partial, output_, summaries_.put(block_of_site(last) + 1)});
}

TensorView AttnResPass::read(ops::OpContext& ctx, int site) {
  SiteState& s = state(site);
  const bool keep_input = keep_inputs_ && site < num_sublayers_;  // the head takes its input at once
  s.x = keep_input ? keep_->take(dtype_, {tokens_, hidden_size_}) : x_;
  TensorView delta;
  if (begins_part(site)) {
    const bool opens = opens_block(site);
    if (opens && site > range_.begin) close_block(ctx, site - 1);
    s.partial = opens ? TensorView() : streams_.in;
    phase1(ctx, block_of_site(site), true);
  } else if (!blocks_.opens_block(site - 1)) {
    delta = output_;
    s.partial = keep_->take(dtype_, {tokens_, hidden_size_});
  }
  if (site == 0) {
    read_identity(ctx);
    return s.x;
  }
  s.h = keep_inputs_ ? keep_->take(dtype_, {tokens_, hidden_size_}) : h_;
  // The output read sees the last block as its open sum.
  if (site == num_sublayers_ && summaries_.ablated == blocks_.num_blocks()) s.partial = delta = TensorView();
  merge(ctx, site, delta, s.h, s.x, true);
  return s.x;
}

void AttnResPass::finish_stream(ops::OpContext& ctx) {
  const int last = range_.end - 1;
  if (last < range_.begin || opens_block(last)) return;  // nothing was added, or it is in `out` already
  ops::add(ctx, {state(last).partial, output_, streams_.out});
}

void AttnResPass::begin_backward() {
  take_transient();
  d_open_ = d_partial_;
}

TensorView AttnResPass::reread(ops::OpContext& ctx, int site, Arena& room) {
  SiteState& s = state(site);
  if (keep_inputs_) return s.x;
  const int block = block_of_site(site);
  s.x = room.take(dtype_, {tokens_, hidden_size_});
  if (site == 0) {
    ops::rms_norm_apply(ctx, {s.h, site_at(0).norm_weight, s.h_rstd, s.x});
    return s.x;
  }
  if (!is_open(block)) phase1(ctx, block, false);
  s.h = h_;
  merge(ctx, site, {}, s.h, s.x, false);
  return s.x;
}

TensorView AttnResPass::output_gradient(ops::OpContext& ctx, int) {
  if (dtype_ == acc_) return d_open_;
  ops::cast(ctx, {d_open_, d_output_});
  return d_output_;
}

void AttnResPass::read_backward(ops::OpContext& ctx, int site, TensorView dx) {
  const int block = block_of_site(site);
  if (site == num_sublayers_ && !keep_inputs_) {  // no reread() made the output site's h again
    if (!is_open(block)) phase1(ctx, block, false);
    state(site).h = h_;
    merge(ctx, site, {}, h_, x_, false);
  }
  if (!is_open(block)) open(block);  // nothing of this block was made again: only room for dh is needed
  if (site == 0) {
    const auto [gradient, mode] = summaries_.deposit(0);
    ops::rms_norm_backward(
        ctx, {state(0).h, site_at(0).norm_weight, state(0).h_rstd, dx, gradient, *mode, site_at(0).d_norm_weight});
    *mode = ops::GradMode::accumulate;
  } else {
    merge_backward(ctx, site, dx);
  }
  if (!begins_part(site)) return;
  phase1_backward(ctx, block);
  // Every reader of the block before this one is done: the gradient of its sum is complete.
  if (site > range_.begin) d_open_ = summaries_.complete_gradient(block);
}

void AttnResPass::merge_backward(ops::OpContext& ctx, int site, TensorView dx) {
  SiteState& s = state(site);
  s.dh = workspace_.block.take(dtype_, {tokens_, hidden_size_});
  s.dh_dot_h = workspace_.block.take(acc_, {tokens_});
  ops::AttnResMergeBackward args;
  args.h = s.h;
  args.h_rstd = s.h_rstd;
  args.norm_weight = site_at(site).norm_weight;
  args.dy = dx;
  args.partial = s.partial;
  args.partial_rstd = s.partial_rstd;
  args.partial_logit = s.partial_logit;
  args.lse_total = s.lse_total;
  args.query = site_at(site).query;
  args.dh = s.dh;
  args.dh_dot_h = s.dh_dot_h;
  if (s.partial) args.dpartial = d_open_;
  args.dpartial_mode = site == num_sublayers_ ? ops::GradMode::overwrite : ops::GradMode::accumulate;
  args.dnorm_weight = site_at(site).d_norm_weight;
  args.dquery = site_at(site).d_query;
  ops::attn_res_merge_backward(ctx, args);
}

void AttnResPass::phase1_backward(ops::OpContext& ctx, int block) {
  const BlockState& part = block_state(block);
  if (part.queries.empty()) return;
  query_list_.clear();
  d_query_list_.clear();
  lse_list_.clear();
  dh_list_.clear();
  dot_list_.clear();
  for (int site : part.queries) {
    query_list_.push_back(site_at(site).query);
    d_query_list_.push_back(site_at(site).d_query);
    lse_list_.push_back(state(site).lse_total);
    dh_list_.push_back(state(site).dh);
    dot_list_.push_back(state(site).dh_dot_h);
  }
  d_source_list_.clear();
  d_source_mode_list_.clear();
  for (int summary = 0; summary <= block; ++summary) {
    const auto [gradient, mode] = summaries_.deposit(summary);
    d_source_list_.push_back(gradient);
    d_source_mode_list_.push_back(*mode);
    *mode = ops::GradMode::accumulate;
  }
  ops::attn_res_phase1_backward(ctx, {sources(block), query_list_, part.rstd, part.logit, lse_list_, dh_list_,
                                      dot_list_, d_source_list_, d_source_mode_list_, d_query_list_});
}

TensorView AttnResPass::incoming_gradient() {
  if (range_.begin == range_.end && !range_.is_last) return d_open_;  // the embedding alone
  return opens_block(range_.begin) ? summaries_.complete_gradient(block_of_site(range_.begin)) : d_open_;
}

DepthWeights AttnResPass::depth_weights(ops::OpContext& ctx, int site) const {
  if (site == 0) return {{1.0}, 0.0, 1.0};
  const SiteState& s = state(site);
  const BlockState& part = block_state(block_of_site(site));
  const auto q = std::find(part.queries.begin(), part.queries.end(), site) - part.queries.begin();
  DepthWeights found;
  found.weights.resize(static_cast<size_t>(num_depth_weights(blocks_, site)));
  const TensorView partial_logit = s.partial ? s.partial_logit : TensorView();
  ops::attn_res_depth_weights(
      ctx, {part.logit.select(0, q), partial_logit, s.lse_total, found.weights, &found.entropy, &found.largest});
  return found;
}

std::vector<double> AttnResPass::source_cosines(ops::OpContext& ctx) {
  std::vector<TensorView> all;
  for (const TensorView& source : sources(blocks_.num_blocks() - 1)) all.push_back(source);
  all.push_back(state(num_sublayers_).partial);
  std::vector<double> cosines(static_cast<size_t>(num_source_cosines(blocks_)));
  ops::AttnResSourceCosines args;
  args.sources = all;
  args.cosines = cosines;
  ops::attn_res_source_cosines(ctx, args);
  return cosines;
}

}  // namespace lamina::model
