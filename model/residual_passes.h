// The residual schemes behind model/residual.h.
#pragma once

#include "model/residual.h"

namespace lamina::model {

class StandardPass final : public ResidualPass {
 public:
  StandardPass(const ResidualOptions& options, const ChunkRange& range, const std::vector<Site>& sites,
               ResidualWorkspace& workspace);
  void begin_forward(const Batch& batch, Arena& keep, const Streams& streams, const Summaries&) override;
  TensorView embedding_buffer() override { return streams_.in; }
  TensorView read(ops::OpContext& ctx, int site) override;
  TensorView output_buffer(int site) override;
  void finish_stream(ops::OpContext& ctx) override;
  void begin_backward() override;
  TensorView outgoing_gradient() override { return d_stream_; }
  TensorView reread(ops::OpContext& ctx, int site, Arena& room) override;
  TensorView output_gradient(ops::OpContext& ctx, int site) override;
  void read_backward(ops::OpContext& ctx, int site, TensorView dx) override;
  TensorView incoming_gradient() override { return d_stream_; }
  TensorView hidden(int site) const override { return stream_[local(site)]; }
  DepthWeights depth_weights(ops::OpContext&, int) const override { return {}; }
  std::vector<double> source_cosines(ops::OpContext&) override { return {}; }

 private:
  size_t local(int site) const { return static_cast<size_t>(site - range_.begin); }

  const std::vector<Site>& sites_;
  ResidualWorkspace& workspace_;
  ChunkRange range_;
  int64_t hidden_size_;
  DType dtype_;
  bool keep_inputs_;
  Arena* keep_ = nullptr;
  int64_t tokens_ = 0;
  Streams streams_;
  TensorView output_, normalised_, d_stream_, d_output_;
  std::vector<TensorView> stream_, rstd_, input_;  // per site of the chunk
};

// Manifold-constrained hyper-connections: n streams, which lie side by side in a row of the hidden stream.
class MhcPass final : public ResidualPass {
 public:
  MhcPass(const ResidualOptions& options, const ChunkRange& range, const std::vector<Site>& sites,
          ResidualWorkspace& workspace);
  void begin_forward(const Batch& batch, Arena& keep, const Streams& streams, const Summaries&) override;
  TensorView embedding_buffer() override { return embedding_; }
  void embed(ops::OpContext& ctx) override;
  TensorView read(ops::OpContext& ctx, int site) override;
  TensorView output_buffer(int site) override;
  void finish_stream(ops::OpContext& ctx) override;
  void begin_backward() override;
  TensorView outgoing_gradient() override { return d_streams_; }
  TensorView reread(ops::OpContext& ctx, int site, Arena& room) override;
  TensorView output_gradient(ops::OpContext& ctx, int site) override;
  void read_backward(ops::OpContext& ctx, int site, TensorView dx) override;
  TensorView incoming_gradient() override { return d_streams_; }
  TensorView embedding_gradient(ops::OpContext& ctx) override;
  TensorView hidden(int site) const override { return state_[local(site)].h; }
  DepthWeights depth_weights(ops::OpContext&, int) const override { return {}; }
  std::vector<double> source_cosines(ops::OpContext&) override { return {}; }

 private:
  struct SiteState {
    TensorView streams;                        // x before the sublayer
    TensorView projected, rstd, coefficients;  // core/ops/hyper_connections/hyper_connections.h; sublayers only
    TensorView output;                         // y; sublayers only
    TensorView h, x, h_rstd;                   // h and x live until backward only without recomputation
  };
  size_t local(int site) const { return static_cast<size_t>(site - range_.begin); }
  bool is_output(int site) const { return site == range_.end; }
  Shape row() const { return {tokens_, hidden_size_}; }
  Shape wide() const { return {tokens_, num_streams_ * hidden_size_}; }
  void mix(ops::OpContext& ctx, int site);
  void write(ops::OpContext& ctx, int site, const TensorView& next);
  void mean(ops::OpContext& ctx, SiteState& s);
  // In acc, in which the weights of the mixing are; taken from ctx.scratch if need be.
  TensorView in_acc(ops::OpContext& ctx, const TensorView& streams) const;

  const std::vector<Site>& sites_;
  ResidualWorkspace& workspace_;
  ChunkRange range_;
  int64_t hidden_size_, num_streams_;
  double eps_;
  DType dtype_, acc_;
  bool keep_inputs_;
  Arena* keep_ = nullptr;
  int64_t tokens_ = 0;
  Streams streams_;
  TensorView embedding_, h_, x_, d_streams_, d_output_, dh_, d_coefficients_, d_projected_;
  std::vector<SiteState> state_;  // per site of the chunk
};

// Full and Block AttnRes. Summary 0 is the embedding; summary b + 1 is the sum of block b.
class AttnResPass final : public ResidualPass {
 public:
  AttnResPass(const ResidualOptions& options, const ChunkRange& range, const std::vector<Site>& sites,
              ResidualWorkspace& workspace);
  void begin_forward(const Batch& batch, Arena& keep, const Streams& streams, const Summaries& summaries) override;
  TensorView embedding_buffer() override { return streams_.in; }
  TensorView read(ops::OpContext& ctx, int site) override;
  TensorView output_buffer(int site) override;
  void finish_stream(ops::OpContext& ctx) override;
  void begin_backward() override;
  TensorView outgoing_gradient() override { return d_partial_; }
  TensorView reread(ops::OpContext& ctx, int site, Arena& room) override;
  TensorView output_gradient(ops::OpContext& ctx, int site) override;
  void read_backward(ops::OpContext& ctx, int site, TensorView dx) override;
  TensorView incoming_gradient() override;
  TensorView hidden(int site) const override { return state(site).h; }
  DepthWeights depth_weights(ops::OpContext& ctx, int site) const override;
  std::vector<double> source_cosines(ops::OpContext& ctx) override;

 private:
  struct SiteState {
    TensorView partial;       // p, the open sum that this read sees; empty at a block's start
    TensorView h, x, h_rstd;  // h and x live until backward only without recomputation
    TensorView partial_rstd, partial_logit, lse_total;
    TensorView dh, dh_dot_h;  // backward, until the block's phase 1
  };
  struct BlockState {              // of the part of a block that is in this chunk
    std::vector<int> queries;      // sites served by phase 1
    TensorView rstd, logit, lse;   // [n, tokens], [Q, n, tokens], [Q, tokens]
    std::vector<TensorView> mean;  // Q of [tokens, hidden], until the block is done
  };

  SiteState& state(int site) { return site_state_[static_cast<size_t>(site - range_.begin)]; }
  const SiteState& state(int site) const { return site_state_[static_cast<size_t>(site - range_.begin)]; }
  const Site& site_at(int site) const { return sites_[static_cast<size_t>(site - range_.begin)]; }
  BlockState& block_state(int block) { return block_state_[static_cast<size_t>(block - first_block_)]; }
  const BlockState& block_state(int block) const { return block_state_[static_cast<size_t>(block - first_block_)]; }
  int block_of_site(int site) const;
  bool opens_block(int site) const { return site < num_sublayers_ && blocks_.opens_block(site); }
  // Where phase 1 of a block runs in this chunk.
  bool begins_part(int site) const { return site == range_.begin || opens_block(site); }
  void take_transient();
  bool is_open(int block) const { return workspace_.owner == this && workspace_.open_block == block; }
  void open(int block);
  void phase1(ops::OpContext& ctx, int block, bool save_statistics);
  void phase1_backward(ops::OpContext& ctx, int block);
  void close_block(ops::OpContext& ctx, int last);  // the block that ends with sublayer `last`, inside the chunk
  void merge_backward(ops::OpContext& ctx, int site, TensorView dx);
  void merge(ops::OpContext& ctx, int site, TensorView delta, TensorView h, TensorView x, bool save_statistics);
  void read_identity(ops::OpContext& ctx);
  std::span<const TensorView> sources(int block);  // the summaries that the block reads

  const std::vector<Site>& sites_;
  ResidualWorkspace& workspace_;
  ChunkRange range_;
  pipeline::BlockLayout blocks_;
  int num_sublayers_;  // of the model
  int first_block_;
  int64_t hidden_size_;
  double eps_;
  DType dtype_, acc_;
  bool keep_inputs_;
  Arena* keep_ = nullptr;
  int64_t tokens_ = 0;
  Streams streams_;
  Summaries summaries_;
  TensorView output_, h_, x_, d_partial_, d_output_;
  TensorView d_open_;  // gradient of the open block's sum
  std::vector<SiteState> site_state_;
  std::vector<BlockState> block_state_;
  // Argument lists, reused so that a step allocates nothing.
  std::vector<ops::AttnResQuery> query_list_;
  std::vector<ops::AttnResQueryGradient> d_query_list_;
  std::vector<TensorView> source_list_, lse_list_, dh_list_, dot_list_, d_source_list_;
  std::vector<ops::GradMode> d_source_mode_list_;
};

}  // namespace lamina::model
