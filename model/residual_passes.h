// The two residual schemes behind model/residual.h.
#pragma once

#include "model/residual.h"

namespace lamina::model {

class StandardPass final : public ResidualPass {
 public:
  StandardPass(const ResidualOptions& options, const std::vector<Site>& sites);
  void begin(const BatchShape& batch, Arena& keep) override;
  TensorView embedding_buffer() override;
  TensorView read(ops::OpContext& ctx, int site) override;
  TensorView output_buffer(int site) override;
  TensorView reread(ops::OpContext& ctx, int site) override;
  TensorView output_gradient(ops::OpContext& ctx, int site) override;
  void read_backward(ops::OpContext& ctx, int site, TensorView dx) override;
  TensorView embedding_gradient() override { return d_stream_; }
  TensorView hidden(int site) const override { return stream_[static_cast<size_t>(site)]; }
  std::vector<double> depth_weights(ops::OpContext&, int) const override { return {}; }

 private:
  const std::vector<Site>& sites_;
  int64_t hidden_size_;
  DType dtype_;
  bool keep_inputs_;
  Arena transient_;
  Arena* keep_ = nullptr;
  int64_t tokens_ = 0;
  TensorView output_, normalised_, d_stream_, d_output_;
  std::vector<TensorView> stream_, rstd_, input_;  // per site
};

// Full and Block AttnRes. Summary 0 is the embedding; summary b + 1 is the sum of block b.
class AttnResPass final : public ResidualPass {
 public:
  AttnResPass(const ResidualOptions& options, const std::vector<Site>& sites);
  void begin(const BatchShape& batch, Arena& keep) override;
  TensorView embedding_buffer() override;
  TensorView read(ops::OpContext& ctx, int site) override;
  TensorView output_buffer(int site) override;
  TensorView reread(ops::OpContext& ctx, int site) override;
  TensorView output_gradient(ops::OpContext& ctx, int site) override;
  void read_backward(ops::OpContext& ctx, int site, TensorView dx) override;
  TensorView embedding_gradient() override { return d_summary_[0]; }
  TensorView hidden(int site) const override { return sites_state_[static_cast<size_t>(site)].h; }
  std::vector<double> depth_weights(ops::OpContext& ctx, int site) const override;

 private:
  struct SiteState {
    TensorView partial;       // p, the open sum that this read sees; empty at a block's start
    TensorView h, x, h_rstd;  // h and x live until backward only without recomputation
    TensorView partial_rstd, partial_logit, lse_total;
    TensorView dh, dh_dot_h;  // backward, until the block's phase 1
  };
  struct BlockState {
    std::vector<int> queries;      // sites served by phase 1
    TensorView rstd, logit, lse;   // [n, tokens], [Q, n, tokens], [Q, tokens]
    std::vector<TensorView> mean;  // Q of [tokens, hidden], until the block is done
  };

  int block_of_site(int site) const;
  void phase1(ops::OpContext& ctx, int block, bool save_statistics);
  void phase1_backward(ops::OpContext& ctx, int block);
  void close_block(ops::OpContext& ctx, int last);  // the block that ends with sublayer `last`
  void merge_backward(ops::OpContext& ctx, int site, TensorView dx);
  void merge(ops::OpContext& ctx, int site, TensorView delta, TensorView h, TensorView x, bool save_statistics);
  void read_identity(ops::OpContext& ctx);

  const std::vector<Site>& sites_;
  BlockLayout blocks_;
  int num_sublayers_;
  int64_t hidden_size_;
  double eps_;
  DType dtype_, acc_;
  bool keep_inputs_;
  Arena transient_;    // one micro-batch
  Arena block_arena_;  // one block
  Arena* keep_ = nullptr;
  int64_t tokens_ = 0;
  int open_block_ = -1;  // whose phase-1 results are in block_arena_
  TensorView output_, h_, x_, d_partial_, d_output_;
  TensorView d_open_;  // gradient of the open block's sum: d_partial_ in the last block, its d_summary_ in the others
  std::vector<SiteState> sites_state_;
  std::vector<BlockState> block_state_;
  std::vector<TensorView> summary_, d_summary_;
  std::vector<ops::GradMode> d_summary_mode_;
  // Argument lists, reused so that a step allocates nothing.
  std::vector<ops::AttnResQuery> query_list_;
  std::vector<ops::AttnResQueryGradient> d_query_list_;
  std::vector<TensorView> lse_list_, dh_list_, dot_list_;
};

}  // namespace lamina::model
