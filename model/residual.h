// The residual scheme: what each sublayer reads, and where its output goes. A component of its own, so that a sublayer
// never knows which scheme feeds it.
//
// A model with L sublayers has L + 1 sites: site l < L is the read (and PreNorm) before sublayer l; site L is the output
// read and the final norm before the head.
//   standard       h_l = h_{l-1} + y_{l-1}
//   full_attnres   h_l = AttnRes over [embedding, y_0, .., y_{l-1}]                (arXiv 2603.15031, eqs. 1-4)
//   block_attnres  h_l = AttnRes over [embedding, finished block sums, open partial sum]   (eqs. 5-6)
//   mhc            h_l = H_pre x_l,  x_{l+1} = H_res x_l + H_post y_l of n streams     (core/ops/hyper_connections/hyper_connections.h)
// The n streams of mhc all begin as the embedding, and the output site reads their mean: a sum, as hyper-connections take it, differs by
// a factor that the final norm removes.
// Full AttnRes is the block scheme with blocks of one sublayer. Site 0 has one source, the embedding: the read is the
// identity there and its query is dead, as in the published checkpoints.
//
// A chunk of the pipeline holds a contiguous range of sublayers, and the last chunk the output site too. What enters and
// leaves a chunk is the hidden stream: the residual sum (standard), the n streams side by side (mhc), the open partial sum, or the
// summary of a block that ends exactly there; finished summaries come from the rank's block cache. One rank is the pipeline of one chunk.
// A row of the hidden stream is `wide`: ModelConfig::num_streams() x hidden elements.
//
// One ResidualPass holds the state of one micro-batch in flight in one chunk, forward and backward. Sites are numbered over
// the whole model:
//   forward:  begin_forward(in, out); in the first chunk the embedding is written to embedding_buffer(), then embed();
//             for each sublayer l: x = read(l), the sublayer writes output_buffer(l);
//             then x = read(L) in the last chunk, finish_stream() in the others
//   backward: begin_backward(); outgoing_gradient() is filled with the gradient of `out` (in the last chunk: read_backward(L,
//             dx)); for l from the last sublayer to the first: x = reread(l), dy = output_gradient(l), read_backward(l, dx);
//             incoming_gradient() is the gradient of `in`; in the first chunk embedding_gradient() that of the embedding
#pragma once

#include <memory>
#include <vector>

#include "core/ops/attn_res/attn_res.h"
#include "model/sublayer.h"
#include "parallel/pipeline/block_cache.h"

namespace lamina::model {

// Of one sublayer with mhc, in acc.
struct StreamMixing {
  TensorView weight, bias, alpha;  // W [m, n hidden], b [m], alpha [3]
};

// Parameters of one site.
struct Site {
  TensorView norm_weight, d_norm_weight;  // the PreNorm (site L: model.norm)
  double norm_eps = 1e-5;
  ops::AttnResQuery query;  // AttnRes only
  ops::AttnResQueryGradient d_query;
  StreamMixing mixing, d_mixing;     // mhc only, of sublayers
  std::vector<int> norm_parameters;  // indices into Parameters; the mixing's too
  std::vector<int> query_parameters;
};

// The sublayers of a chunk: [begin, end).
struct ChunkRange {
  int index = 0;  // of the chunk
  int begin = 0, end = 0;
  bool is_last = true;  // holds the output site
  int num_sites() const { return end - begin + (is_last ? 1 : 0); }
};

// What the reads of a model saw, means over tokens.
struct DepthWeights {
  std::vector<double> weights;  // [sources]; empty without Attention Residuals
  double entropy = 0;           // of the weights of a token, nats
  double largest = 0;           // of the weights of a token
};

// The finished summaries of one micro-batch, as one chunk sees them. `cache` is null without Attention Residuals.
struct Summaries {
  pipeline::BlockCache* cache = nullptr;
  int chunk = 0, microbatch = 0;
  int ablated = -1;  // a source that no read sees: 0 the embedding, k the sum of block k - 1; forward only
  TensorView value(int summary) const { return cache->value(chunk, microbatch, summary); }
  TensorView put(int summary) const { return cache->put(chunk, microbatch, summary); }
  pipeline::BlockCache::Accumulator deposit(int summary) const {
    return cache->deposit_of_reader(chunk, microbatch, summary);
  }
  TensorView complete_gradient(int summary) const { return cache->complete_gradient(chunk, microbatch, summary); }
};

// What a pass needs only while it runs, shared by all passes of a rank: they run one at a time.
struct ResidualWorkspace {
  ResidualWorkspace(Device device, MemoryLedger* ledger)
      : transient(device, ledger, "activations"), block(device, ledger, "activations") {}
  Arena transient;              // one forward or backward
  Arena block;                  // phase-1 results of one block
  const void* owner = nullptr;  // the pass whose block that is
  int open_block = -1;
};

class ResidualPass {
 public:
  virtual ~ResidualPass() = default;

  // `keep` holds what backward needs and outlives the pass; reset by the caller between micro-batches.
  // in, out: the hidden stream [tokens, wide]; `out` is empty in the last chunk. `in` must stay until after backward.
  struct Streams {
    TensorView in, out;
  };
  virtual void begin_forward(const Batch& batch, Arena& keep, const Streams& streams, const Summaries& summaries) = 0;
  virtual TensorView embedding_buffer() = 0;                   // [tokens, hidden], for embed()
  virtual void embed(ops::OpContext&) {}                       // writes `in`
  virtual TensorView read(ops::OpContext& ctx, int site) = 0;  // normalised input [tokens, hidden]
  virtual TensorView output_buffer(int site) = 0;              // [tokens, hidden]
  virtual void finish_stream(ops::OpContext& ctx) = 0;         // writes `out`

  virtual void begin_backward() = 0;
  virtual TensorView outgoing_gradient() = 0;  // [tokens, wide] acc, to be written by the caller
  // The normalised input again, kept, or made again in `room`.
  virtual TensorView reread(ops::OpContext& ctx, int site, Arena& room) = 0;
  virtual TensorView output_gradient(ops::OpContext& ctx, int site) = 0;  // compute dtype; until read_backward(site)
  virtual void read_backward(ops::OpContext& ctx, int site, TensorView dx) = 0;
  virtual TensorView incoming_gradient() = 0;                                             // [tokens, wide] acc
  virtual TensorView embedding_gradient(ops::OpContext&) { return incoming_gradient(); }  // [tokens, hidden] acc

  // Observations for the log, valid after read(site) until the next read.
  virtual TensorView hidden(int site) const = 0;  // h before the PreNorm
  virtual DepthWeights depth_weights(ops::OpContext& ctx, int site) const = 0;
  // At the output site, whose sources are all there are: their cosines to each other (core/ops/attn_res/attn_res.h).
  virtual std::vector<double> source_cosines(ops::OpContext& ctx) = 0;
};

// How many depth weights a site has: its sources. 0 without Attention Residuals.
int num_depth_weights(const pipeline::BlockLayout& blocks, int site);
// Of every two sources of the output read.
int num_source_cosines(const pipeline::BlockLayout& blocks);

struct ResidualOptions {
  const ModelConfig& config;
  DType dtype;
  Recompute recompute;
};
// sites: those of the chunk, in order; they and the workspace must outlive the pass.
std::unique_ptr<ResidualPass> make_residual_pass(const ResidualOptions& options, const ChunkRange& range,
                                                 const std::vector<Site>& sites, ResidualWorkspace& workspace);

}  // namespace lamina::model
