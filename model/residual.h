// The residual scheme: what each sublayer reads, and where its output goes. A component of its own, so that a sublayer
// never knows which scheme feeds it.
//
// A stage with L sublayers has L + 1 sites: site l < L is the read (and PreNorm) before sublayer l; site L is the output
// read and the final norm before the head.
//   standard       h_l = h_{l-1} + y_{l-1}
//   full_attnres   h_l = AttnRes over [embedding, y_0, .., y_{l-1}]                (arXiv 2603.15031, eqs. 1-4)
//   block_attnres  h_l = AttnRes over [embedding, finished block sums, open partial sum]   (eqs. 5-6)
// Full AttnRes is the block scheme with blocks of one sublayer. Site 0 has one source, the embedding: the read is the
// identity there and its query is dead, as in the published checkpoints.
//
// One ResidualPass holds the state of one micro-batch in flight, forward and backward:
//   forward:  begin; embedding_buffer(); for l in 0..L-1: x = read(l), sublayer writes output_buffer(l); x = read(L)
//   backward: read_backward(L, dx); for l = L-1..0: x = reread(l), dy = output_gradient(l), read_backward(l, dx);
//             embedding_gradient()
#pragma once

#include <memory>
#include <vector>

#include "core/ops/attn_res.h"
#include "model/sublayer.h"

namespace lamina::model {

// Parameters of one site.
struct Site {
  TensorView norm_weight, d_norm_weight;  // the PreNorm (site L: model.norm)
  double norm_eps = 1e-5;
  ops::AttnResQuery query;  // AttnRes only
  ops::AttnResQueryGradient d_query;
  std::vector<int> norm_parameters;  // indices into Parameters
  std::vector<int> query_parameters;
};

// Which sublayers form a block: block b holds sublayers [begin[b], begin[b + 1]).
struct BlockLayout {
  std::vector<int> begin;  // num_blocks + 1 entries; the last is L
  int num_blocks() const { return static_cast<int>(begin.size()) - 1; }
  int block_of(int sublayer) const;
  bool opens_block(int sublayer) const { return begin[static_cast<size_t>(block_of(sublayer))] == sublayer; }
};
BlockLayout make_block_layout(const ModelConfig& config);  // full_attnres: one sublayer per block

class ResidualPass {
 public:
  virtual ~ResidualPass() = default;

  // `keep` holds what backward needs and outlives the pass; reset by the caller between micro-batches.
  virtual void begin(const BatchShape& batch, Arena& keep) = 0;
  virtual TensorView embedding_buffer() = 0;                   // [tokens, hidden]
  virtual TensorView read(ops::OpContext& ctx, int site) = 0;  // normalised input [tokens, hidden]
  virtual TensorView output_buffer(int site) = 0;              // [tokens, hidden]

  // The normalised input again, saved or made again in ctx.scratch.
  virtual TensorView reread(ops::OpContext& ctx, int site) = 0;
  virtual TensorView output_gradient(ops::OpContext& ctx, int site) = 0;  // compute dtype
  virtual void read_backward(ops::OpContext& ctx, int site, TensorView dx) = 0;
  virtual TensorView embedding_gradient() = 0;  // [tokens, hidden] acc

  // Observations for the log, valid after read(site) until the next read.
  virtual TensorView hidden(int site) const = 0;  // h before the PreNorm
  // Mean softmax weight per source over the tokens of this micro-batch; empty for the standard scheme.
  virtual std::vector<double> depth_weights(ops::OpContext& ctx, int site) const = 0;
};

struct ResidualOptions {
  const ModelConfig& config;
  DType dtype;
  Recompute recompute;
  Device device;
  MemoryLedger* ledger;
};
std::unique_ptr<ResidualPass> make_residual_pass(const ResidualOptions& options, const std::vector<Site>& sites);

}  // namespace lamina::model
