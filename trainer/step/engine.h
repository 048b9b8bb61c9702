// One rank's share of an optimizer step: the pipeline's schedule over the micro-batches, gradient accumulation, reduction
// overlapped with the last backward, clipping, the sharded update, and the gathering of parameters. No files, no
// configuration decisions.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "configs/schema/config.h"
#include "core/base/trace.h"
#include "model/stage.h"
#include "parallel/comm/communicator.h"
#include "parallel/expert/exchange.h"
#include "parallel/mesh/mesh.h"
#include "parallel/pipeline/executor.h"
#include "parallel/zero/gradient_reducer.h"
#include "trainer/optimizer/optimizer.h"

namespace lamina {

DType compute_dtype(Precision precision);
Device device_of(const RunConfig& run, int index);              // the GPU `index`, or the CPU
mesh::MeshShape mesh_of(const Config& config, int world_size);  // Error when the layout does not fit

// What the last accumulate_gradients() saw in this pipeline rank's sublayers, over all data-parallel ranks and micro-batches.
struct StepObservations {
  std::vector<model::SublayerStats> sublayers;  // [sublayers of the model]; empty ones where this rank has none
  double aux_loss = 0;                          // the balance losses of this pipeline rank's layers, weighted
  double max_logit = -INFINITY;                 // of its MLA layers; seen with QK-Clip, and where layers are logged
  int clipped_heads = 0;                        // by the update that followed
};

// For inference there are parameters only, neither gradients nor masters nor an optimizer's state: of what follows, what trains and
// what looks at the optimizer must not be called.
enum class EngineUse : uint8_t { training, inference };

class Engine {
 public:
  // model.vocab_size must be resolved. `comm` is the world: pipeline x data ranks; with run.device: cuda it must carry views
  // of the GPU `device_index`, on which this rank then lives. `ledger` may be null. Collective. There is room for the largest of the
  // run's stages; training begins with the first.
  Engine(const Config& config, comm::Communicator& comm, MemoryLedger* ledger, int device_index = 0,
         EngineUse use = EngineUse::training);

  // With data.document_mask: the token that ends a document. Must be called before the first pass then.
  void set_end_of_document(int32_t token) { end_of_document_ = token; }

  void initialise();  // parameters and masters from run.seed; moments zero

  // Between steps, the same on all ranks: what accumulate_gradients() gets from now on. Layers per chunk stay where they are.
  void set_stage(const BatchStage& stage);
  const BatchStage& batch() const { return batch_; }

  // tokens, targets [sequences, seq_len] of this data-parallel rank: its micro-batches in order, the same on all its
  // pipeline ranks. Leaves the reduced gradients of grad_scale * sum of token losses in the owned slices. Returns the sum of
  // token losses on the pipeline rank that holds the head, 0 on the others; token_losses, when given, receives every token's
  // loss there.
  double accumulate_gradients(std::span<const int32_t> tokens, std::span<const int32_t> targets, double grad_scale,
                              std::vector<model::LayerSums>* sums = nullptr, std::span<double> token_losses = {});
  // This rank's part of the squared global gradient norm.
  double owned_gradient_square();
  // Name of the first owned tensor with a non-finite gradient, or empty.
  std::string first_non_finite_gradient();
  // The optimizer's step, then the selection biases of the experts by `bias_rate`, QK-Clip, and the gathering of parameters.
  void update(int64_t step, double lr, double grad_scale, double bias_rate = 0);
  // After a load. Parameters from masters, on all ranks; for inference from the ranks that own them.
  void publish();
  // Of a group's parameters what this rank owns: what it loads.
  std::vector<zero::OwnedPart> owned_parts(model::Group group);

  // Sum of token losses on the head's rank (0 on the others), no gradients. Any number of sequences of data.seq_len, in micro-batches of
  // at most train.micro_batch_size, whatever the stage. Collective over the pipeline. With ablate_source() no depth read sees that source (model/residual.h);
  // -1: all are seen.
  void ablate_source(int source) { ablated_source_ = source; }
  double loss(std::span<const int32_t> tokens, std::span<const int32_t> targets);
  // Every token's loss into `losses` on the head's rank (zeros on the others), no gradients: of sequences of any one length, in one
  // micro-batch of at most max_tokens() tokens. Collective over the pipeline.
  void token_losses(std::span<const int32_t> tokens, std::span<const int32_t> targets, int64_t seq_len,
                    std::span<double> losses);
  int64_t max_tokens() const { return config_.train.micro_batch_size * config_.data.seq_len; }  // of a micro-batch
  // Logits of the last token of one sequence, [vocab_size] floats. Only when one rank holds the model as one chunk.
  std::vector<float> next_token_logits(std::span<const int32_t> tokens);

  model::Parameters& parameters() { return parameters_; }
  ShardedOptimizer& optimizer() {
    LAMINA_CHECK(optimizer_, "the optimizer of an engine for inference");
    return *optimizer_;
  }
  const StepObservations& observations() const { return observations_; }
  model::Stage& stage() { return stage_; }
  ops::OpContext& context() { return ctx_; }
  const ops::OpContext& context() const { return ctx_; }
  const mesh::MeshShape& mesh() const { return mesh_; }
  const mesh::Coordinates& place() const { return place_; }
  comm::Communicator& world() { return world_; }
  // Bytes this rank has sent since the last call: of gradients, parameters and optimizer messages; to experts and back.
  int64_t take_data_bytes();
  int64_t take_expert_bytes() { return expert_ ? expert_->take_bytes_sent() : 0; }
  // Those of the latter that are rows of activations; the rest are counts and lists of experts.
  int64_t take_expert_row_bytes() { return exchange_ ? exchange_->take_row_bytes() : 0; }
  const Config& config() const { return config_; }
  int num_sites() const { return static_cast<int>(2 * config_.model.num_hidden_layers) + 1; }
  const model::StagePlan& plan() const { return plan_; }
  const pipeline::Schedule& schedule() const { return schedule_; }                // of a training step of the stage
  const pipeline::ExecutionReport& last_execution() const { return execution_; }  // of the last accumulate_gradients()
  // Bytes this rank has sent since the last call to add up a tied embedding's gradient over its two holders.
  int64_t take_tied_bytes() { return std::exchange(tied_bytes_, 0); }
  // From now on every part of a pass and of the update is recorded there. Null: nothing is.
  void set_trace(trace::Recorder* trace);
  // Called for each step of the program before it runs: for fault injection in tests.
  std::function<void(const pipeline::Step&)> before_step;
  // The observations of this rank's tokens hold the experts that each chose: to count what must travel.
  bool keep_choices = false;

 private:
  model::Stage::Pass make_pass(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                               int64_t num_sequences_per_microbatch, int64_t seq_len);
  double sum_token_loss(const TensorView& token_loss, std::span<double> out);
  void bring(std::span<const int32_t> tokens, const Buffer& into);
  void reserve_tokens(int64_t count);
  double forward_only(std::span<const int32_t> tokens, std::span<const int32_t> targets, int64_t num_sequences,
                      int64_t seq_len, std::span<double> losses = {});
  void run_pass(const model::Stage::Pass& pass, const std::vector<pipeline::Step>& steps);
  void connect();
  bool shares_tied_embedding() const;
  void settle_memory();
  void share_tied_embedding();
  void share_observations(bool detailed);
  void report_ready(int parameter);
  void find_documents(std::span<const int32_t> tokens, int64_t seq_len);
  void update_selection_biases(double rate);
  void clip_query_keys();
  void clip_head(int64_t layer, int64_t head, double factor);
  bool clips_query_keys() const;
  void gather_parameters();

  Config config_;
  comm::Communicator& world_;
  mesh::MeshShape mesh_;
  mesh::Coordinates place_;
  std::unique_ptr<comm::Communicator> data_, pipeline_;
  std::unique_ptr<comm::Communicator> expert_, expert_data_;  // with expert ranks
  std::optional<expert::Exchange> exchange_;
  Device device_;
  DType dtype_;
  Stream stream_;
  Arena scratch_;
  ops::RefusalLog refusals_;
  ops::OpContext ctx_;
  model::StagePlan plan_;
  model::Parameters parameters_;
  model::Stage stage_;
  model::Observer observer_;
  pipeline::Executor executor_;
  BatchStage batch_;  // of the training steps
  pipeline::Schedule schedule_;
  std::vector<pipeline::Step> steps_;                         // this rank's, of a training step
  std::map<int, std::vector<pipeline::Step>> forward_steps_;  // by number of micro-batches
  pipeline::ExecutionReport execution_;
  OwnerGroups owners_;
  std::optional<ShardedOptimizer> optimizer_;       // of training
  std::vector<zero::GradientReducer> reducers_;     // [group]; of training
  std::vector<zero::ParameterGatherer> gatherers_;  // [group]
  Buffer tokens_, targets_, token_loss_, document_starts_;
  int32_t end_of_document_ = -1;
  StepObservations observations_;  // of the last accumulate_gradients()
  int ablated_source_ = -1;
  int64_t reserved_tokens_ = 0;
  Buffer tied_;  // a piece of the other holder's gradient
  int64_t tied_bytes_ = 0;
  trace::Recorder* trace_ = nullptr;
  MemoryLedger* ledger_;
};

}  // namespace lamina
