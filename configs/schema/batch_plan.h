// What each batch of a run is: `stages` and `train.batch_ramp` of the experiment file, written out. Batch b is the one that step b takes in
// a run that passes none over (data/passed_batches.h), so what a batch is doesn't depend on what happened to those before it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "configs/schema/config.h"

namespace lamina {

// Batches of one kind that follow each other.
struct BatchStage {
  std::string key;    // that says so: "train", "train.batch_ramp" or "stages[0]"
  int64_t first = 1;  // batch, counted from 1
  int64_t global_batch_size = 0, micro_batch_size = 0, seq_len = 0;
  std::vector<double> weights;  // of data.train, in order
  double lr_factor = 1;
  int64_t piece_len = 0;      // of the text from which its sequences are cut: a multiple of seq_len
  bool begins_epoch = false;  // its pieces are longer than those before: every source starts an epoch
  int64_t tokens_per_batch() const { return global_batch_size * seq_len; }
};

class BatchPlan {
 public:
  explicit BatchPlan(const Config& config);
  // One stage: all batches alike.
  BatchPlan(const DataConfig& data, int64_t global_batch_size);

  const std::vector<BatchStage>& stages() const { return stages_; }  // at least one; by rising `first`
  size_t stage_of(int64_t batch) const;                              // index; batches count from 1
  const BatchStage& at(int64_t batch) const { return stages_[stage_of(batch)]; }
  // Of batches [first, last]; none where last < first.
  int64_t num_sequences(int64_t first, int64_t last) const;
  int64_t num_tokens(int64_t first, int64_t last) const;
  int64_t max_microbatch_tokens() const;

  // Whether batches 1 to `last` are made of the same sequences in both; how they are cut in micro-batches and the learning rate don't
  // count, nor do sources at the end of the list that none of them reads.
  bool has_same_batches(const BatchPlan& other, int64_t last) const;

 private:
  std::vector<BatchStage> stages_;
};

// The configuration of a run that consists of that stage alone.
Config config_of(const Config& config, const BatchStage& stage);

// What a checkpoint's model has been trained on so far, as a configuration without stages: data.seq_len is the longest up to `batch`.
Config trained_config(const Config& config, int64_t batch);

// The sources' shares of the sequences are the same: the mixture's pattern goes on from one to the other.
bool has_same_mixture(const BatchStage& a, const BatchStage& b);

// "8 x 512 tokens per step, 2 per micro-batch, weights 3, 1, learning rate x 0.5"
std::string to_text(const BatchStage& stage);

// "1-400" or "7" in a run of that many steps that passes no batch over; "from 900" where that is after its end.
std::string steps_text(const BatchPlan& plan, size_t stage, int64_t num_steps);

}  // namespace lamina
