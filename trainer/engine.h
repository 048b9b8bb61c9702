// One data-parallel rank's share of an optimizer step: gradient accumulation over micro-batches, reduction overlapped with
// the last backward, clipping, the sharded update, and the gathering of parameters. No files, no configuration decisions.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "model/stage.h"
#include "parallel/comm/communicator.h"
#include "parallel/zero/gradient_reducer.h"
#include "trainer/optimizer.h"

namespace lamina {

DType compute_dtype(Precision precision);

class Engine {
 public:
  // model.vocab_size must be resolved. `comm` is the data-parallel group. `ledger` may be null.
  Engine(const Config& config, comm::Communicator& comm, MemoryLedger* ledger);

  void initialise();  // parameters and masters from run.seed; moments zero

  // tokens, targets [sequences, seq_len] of this rank: its micro-batches in order. Leaves the reduced gradients of
  // grad_scale * sum of token losses in the owned slices. Returns this rank's sum of token losses; token_losses, when given,
  // receives every token's loss.
  double accumulate_gradients(std::span<const int32_t> tokens, std::span<const int32_t> targets, double grad_scale,
                              std::vector<model::LayerSums>* sums = nullptr, std::span<double> token_losses = {});
  // This rank's part of the squared global gradient norm.
  double owned_gradient_square();
  // Name of the first owned tensor with a non-finite gradient, or empty.
  std::string first_non_finite_gradient();
  void update(int64_t step, double lr, double grad_scale);
  // Parameters from masters, on all ranks (after a load).
  void publish();

  // Sum of token losses, no gradients. Any number of sequences, in micro-batches of at most micro_batch_size.
  double loss(std::span<const int32_t> tokens, std::span<const int32_t> targets);
  // Logits of the last token of one sequence, [vocab_size] floats.
  std::vector<float> next_token_logits(std::span<const int32_t> tokens);

  model::Parameters& parameters() { return parameters_; }
  ShardedAdamW& optimizer() { return optimizer_; }
  model::Stage& stage() { return stage_; }
  ops::OpContext& context() { return ctx_; }

 private:
  model::Stage::Batch stage_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets,
                                  int64_t num_sequences, double grad_scale);
  double sum_token_loss(const model::Stage::Batch& batch, std::span<double> out) const;
  void reserve_batch(int64_t num_sequences);

  Config config_;
  Device device_;
  DType dtype_;
  Stream stream_;
  Arena scratch_;
  ops::RefusalLog refusals_;
  ops::OpContext ctx_;
  model::Parameters parameters_;
  model::Stage stage_;
  ShardedAdamW optimizer_;
  zero::GradientReducer matrix_reducer_, vector_reducer_;
  zero::ParameterGatherer matrix_gatherer_, vector_gatherer_;
  Buffer tokens_, targets_, token_loss_;
  int64_t reserved_sequences_ = 0;
  MemoryLedger* ledger_;
};

}  // namespace lamina
