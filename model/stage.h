// A pipeline rank's part of the model: its chunks, the micro-batches in flight in them, and the block cache that they share.
// What runs when is decided by a schedule; this class does one action at a time and owns what a hop sends or receives.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "model/chunk.h"
#include "parallel/pipeline/block_cache.h"
#include "parallel/pipeline/executor.h"

namespace lamina::model {

// Where everything is, for every rank. Pure.
struct StagePlan {
  int num_ranks = 1;
  pipeline::ChunkSplit split;
  pipeline::BlockLayout blocks;
  pipeline::BlockRoutes routes;
  int num_chunks() const { return split.num_chunks(); }
  ChunkRange range(int chunk) const;
};
// layers_per_chunk: chunk c on rank c mod num_ranks.
StagePlan make_stage_plan(const ModelConfig& config, std::span<const int64_t> layers_per_chunk, int num_ranks,
                          BlockTransport transport);
LocalParameters local_parameters(const ModelConfig& config, const StagePlan& plan, int pp_rank, int ep_rank = 0,
                                 int num_expert_ranks = 1);

class Stage final : public pipeline::ChunkRunner {
 public:
  // max_tokens: of one micro-batch. The plan and the parameters must outlive the stage.
  Stage(const ChunkOptions& options, const StagePlan& plan, int pp_rank, int64_t max_tokens, Parameters& parameters);
  ~Stage() override;

  // The micro-batches of one pass. tokens, targets, token_loss: [num_microbatches * shape.num_tokens()].
  struct Pass {
    Batch shape;  // of one micro-batch, without its documents
    int num_microbatches = 1;
    TensorView tokens, targets, token_loss;
    TensorView document_starts;  // [num_microbatches * shape.num_tokens()] i32, or empty: one document per sequence
    double grad_scale = 0;
    bool train = false;
    int ablated_source = -1;                 // of the depth reads (residual.h); without train
    std::vector<LayerSums>* sums = nullptr;  // [sites of the model]
    Observer* observer = nullptr;            // begun for all sequences of the pass
    // `ready(parameter)` is called for each use of a parameter as soon as its gradient of all micro-batches is complete.
    std::function<void(int)> ready;
    std::function<void()> progress;
  };
  void begin(ops::OpContext& ctx, const Pass& pass);
  void run(const pipeline::Action& action) override;
  void end();  // throws InternalError when anything is left behind
  // Between passes, when no work on the device is left: see Arena::settle().
  bool is_settled();
  void settle();

  // index: of a chunk of this rank, among all chunks of the model.
  void receive_forward(int index, int microbatch, pipeline::HopViews& views) override;
  void send_forward(int index, int microbatch, pipeline::HopViews& views) override;
  void sent_forward(int index, int microbatch) override;
  void receive_backward(int index, int microbatch, pipeline::HopViews& views) override;
  void send_backward(int index, int microbatch, pipeline::HopViews& views) override;
  void sent_backward(int index, int microbatch) override;

  // The head's input (after the final norm) for tokens without targets: [num_tokens, hidden_size], valid until the next
  // pass. Only when this rank holds the whole model as one chunk.
  TensorView forward_hidden(ops::OpContext& ctx, const Batch& shape, TensorView tokens);
  TensorView head_weight() const;  // on the last chunk's rank

  bool has_first_chunk() const { return pp_rank_ == 0; }
  bool has_last_chunk() const { return (plan_.num_chunks() - 1) % plan_.num_ranks == pp_rank_; }
  // How often `ready` is called per pass, by parameter index; 0 for those not held.
  std::vector<int> uses_per_parameter() const;
  int peak_summaries() const { return cache_ ? cache_->peak_held() : 0; }  // of the last pass
  const StagePlan& plan() const { return plan_; }

 private:
  std::vector<Arena*> arenas();
  // A hop's state for one micro-batch.
  struct InFlight {
    Chunk::Slot* slot = nullptr;
    TensorView in, out;                      // hidden stream
    bool owns_in = false, owns_out = false;  // buffers of streams_; otherwise the block cache's
    pipeline::HopViews gradients_in;         // received: of what went out
    pipeline::HopViews gradients_out;        // to be sent: of what came in
    std::vector<int> unreported;             // parameters whose gradients wait for the weight gradients
  };
  InFlight& in_flight(int chunk, int microbatch);
  const pipeline::ChunkRoutes& routes(int chunk) const { return plan_.routes.chunks[static_cast<size_t>(chunk)]; }
  Chunk& chunk(int index) { return *chunks_[static_cast<size_t>(index / plan_.num_ranks)]; }
  bool is_last(int index) const { return index + 1 == plan_.num_chunks(); }
  bool hops_are_local() const { return plan_.num_ranks == 1; }
  Summaries summaries(int chunk, int microbatch) const {
    return {cache_.get(), chunk, microbatch, pass_.ablated_source};
  }
  TensorView take_stream();
  void give_stream(TensorView& view);
  Chunk::Slot* take_slot(int index);
  Chunk::Input input(int microbatch) const;
  void make_room_for_input(int index, int microbatch);
  void make_room_for_output(int index, int microbatch);
  void forward(int index, int microbatch);
  void backward(int index, int microbatch, bool defer_weights);
  void fill_outgoing(int index, int microbatch, TensorView gradient);
  void collect_hop_gradients(int index, int microbatch);
  void make_incoming(int index, int microbatch);
  void release_after_backward(int index, int microbatch);
  void release_after_forward(int index, int microbatch);
  void release_slot(int index, InFlight& state);
  void report(const std::vector<int>& parameters) const;

  const StagePlan& plan_;
  int pp_rank_;
  ChunkOptions options_;
  int64_t hidden_size_;
  int64_t
      stream_size_;  // of a row of the hidden stream; summaries have hidden_size, which is the same where there are any
  Parameters& parameters_;
  std::vector<std::unique_ptr<Chunk>> chunks_;  // [chunk / num_ranks]
  ResidualWorkspace workspace_;
  std::unique_ptr<pipeline::BlockCache> cache_;                   // AttnRes only
  BufferPool streams_;                                            // [max_tokens, stream_size_] in the compute dtype
  std::vector<std::vector<std::unique_ptr<Chunk::Slot>>> slots_;  // [chunk / num_ranks]
  std::vector<std::vector<Chunk::Slot*>> free_slots_;
  std::vector<InFlight> in_flight_;  // [chunk / num_ranks][microbatch]
  ops::OpContext* ctx_ = nullptr;
  Pass pass_;
};

}  // namespace lamina::model
