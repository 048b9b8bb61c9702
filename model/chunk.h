// A chunk: a contiguous range of sublayers with their residual scheme, the embedding in the first one and the head in the
// last. Runs one micro-batch forward and backward; parameter gradients accumulate in the flat gradient buffers.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <variant>
#include <vector>

#include "model/kda.h"
#include "model/mla.h"
#include "model/mlp.h"
#include "model/moe.h"
#include "model/residual.h"

namespace lamina::model {

// Sums over tokens that the log needs, per site; the trainer adds them over micro-batches and ranks.
struct LayerSums {
  double hidden_square = 0;    // sum of h^2 over tokens and channels, h being what the scheme hands over
  double output_square = 0;    // of the sublayer's output
  double gradient_square = 0;  // of the loss's gradient with respect to that output
  // Sums over micro-batches of the mean over tokens (residual.h).
  std::vector<double> depth_weights;
  double depth_entropy = 0, depth_largest = 0;
  std::vector<double> source_cosines;  // of the output site
};

struct ChunkOptions {  // the configuration must outlive the chunk
  const ModelConfig& config;
  DType dtype;
  Recompute recompute = Recompute::none;
  Device device;
  MemoryLedger* ledger = nullptr;
  expert::Exchange* experts = nullptr;  // null: this rank has every expert
};

class Chunk {
 public:
  struct LayerSaved {  // what the layer's mixer and MLP are decides which are used
    Mla::Saved mla;
    Kda::Saved kda;
    Mlp::Saved dense;
    Moe::Saved moe;
  };
  // One micro-batch in flight: what backward needs. Not movable: its pass refers to the chunk.
  class Slot {
   public:
    Slot(const Chunk& chunk, const ChunkOptions& options, ResidualWorkspace& workspace);
    WeightGradients& weights() { return weights_; }
    std::array<Arena*, 2> arenas() { return {&keep_, &weights_.memory()}; }

   private:
    friend class Chunk;
    Arena keep_;
    std::unique_ptr<ResidualPass> pass_;
    std::vector<LayerSaved> layers_;
    WeightGradients weights_;
    TensorView d_head_input_;
  };

  // What one micro-batch runs on. Views on the device; tokens, targets [num_tokens] i32, token_loss [num_tokens] acc.
  struct Input {
    Batch batch;                             // its probes are set by the chunk
    TensorView tokens;                       // first chunk
    TensorView targets, token_loss;          // last chunk; token_loss is written
    bool train = false;                      // backward follows
    std::vector<LayerSums>* sums = nullptr;  // [sites of the model], or null
    Observer* observer = nullptr;            // null: nothing is observed
    int64_t first_sequence = 0;              // of the pass
    std::function<void()> progress;          // called between sublayers
  };

  Chunk(const ChunkOptions& options, const ChunkRange& range, Parameters& parameters);

  // `streams.in` of the first chunk is written here (from the embedding), of the others it is read.
  void forward(ops::OpContext& ctx, Slot& slot, const Input& input, const ResidualPass::Streams& streams,
               const Summaries& summaries);
  // The head's input instead of a loss: [num_tokens, hidden_size], valid until the next call. Last chunk.
  TensorView forward_hidden(ops::OpContext& ctx, Slot& slot, const Input& input, const ResidualPass::Streams& streams,
                            const Summaries& summaries);

  // Fills [tokens, wide] acc (residual.h) with the gradient of `streams.out`.
  using FillGradient = std::function<void(TensorView)>;
  // Once after each forward with train. Deferred weight gradients wait in slot.weights().
  // `done(sublayer)` is called after each sublayer, in order, and after the embedding and output site.
  void backward(ops::OpContext& ctx, Slot& slot, const Input& input, bool defer_weights, const FillGradient& outgoing,
                const std::function<void(const std::vector<int>&)>& done);
  // Gradient of `streams.in` [tokens, wide] acc, after backward. Not of the first chunk.
  TensorView incoming_gradient(Slot& slot) const { return slot.pass_->incoming_gradient(); }

  const ChunkRange& range() const { return range_; }
  bool has_embedding() const { return range_.index == 0; }
  const std::vector<Site>& sites() const { return sites_; }
  TensorView head_weight() const { return head_; }

 private:
  struct Layer {
    std::variant<Mla, Kda> mixer;
    std::variant<Mlp, Moe> mlp;
  };
  Layer make_layer(const ChunkOptions& options, Parameters& parameters, int64_t layer) const;
  // Calls action(module, saved) with the sublayer's.
  template <class Action>
  void with_sublayer(Slot& slot, int sublayer, const Action& action) const;
  void build_sites(const ModelConfig& config, Parameters& parameters);
  TensorView run_sublayers(ops::OpContext& ctx, Slot& slot, const Input& input, const ResidualPass::Streams& streams,
                           const Summaries& summaries);
  void run_sublayer(ops::OpContext& ctx, Slot& slot, const Batch& batch, int sublayer, TensorView x, TensorView y);
  void sublayer_backward(ops::OpContext& ctx, Slot& slot, const Batch& batch, int sublayer);
  void observe(ops::OpContext& ctx, const Slot& slot, const Input& input, int site) const;
  size_t local_layer(int sublayer) const { return static_cast<size_t>((sublayer - range_.begin) / 2); }

  ChunkRange range_;
  ResidualOptions residual_;
  int64_t hidden_size_;
  std::vector<Site> sites_;
  std::vector<Layer> layers_;
  std::vector<std::vector<int>> reported_;  // per sublayer: its parameters, depth queries left out
  std::vector<int> queries_;                // the depth queries of all sites
  TensorView embedding_, d_embedding_, head_, d_head_;
  int embedding_index_ = -1, head_index_ = -1;
};

}  // namespace lamina::model
