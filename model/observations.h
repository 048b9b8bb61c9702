// What the sublayers see of a training pass besides activations: how often each expert was chosen, the balance of the sequences,
// the largest attention logits. It is added up where the model computes and brought to the host once, at the pass's end: on a GPU
// each look in between would leave it idle.
#pragma once

#include <cstdint>
#include <vector>

#include "configs/schema/config.h"
#include "core/device/buffer.h"
#include "core/device/stream.h"
#include "core/tensor/view.h"

namespace lamina::model {

// Of one sublayer, over a pass.
struct SublayerStats {
  std::vector<double> max_logits;     // MLA: [heads], the largest attention logit
  std::vector<double> expert_counts;  // MoE: [experts], the tokens of this rank that chose each
  double balance_loss = 0;  // MoE: sum over sequences of their balance (core/ops/router/router.h), without its weight
  double entropy = 0;       // MoE, when wanted: sum over tokens of their normalised scores' entropy, in nats
  std::vector<int32_t> choices;  // MoE, when wanted: every token's experts, in the order of the micro-batches
};

// Where a sublayer leaves what it sees of one micro-batch. Empty: not wanted.
struct SublayerProbes {
  TensorView expert_counts;                 // MoE: [experts] i32; added to
  TensorView entropy;                       // MoE: [1] f64; added to
  TensorView balance;                       // MoE: [num_sequences] acc; overwritten
  TensorView max_logits;                    // MLA: [num_sequences, heads] acc; overwritten
  std::vector<int32_t>* choices = nullptr;  // MoE: appended to; the host waits
};

class Observer {
 public:
  // The configuration must outlive the observer. `ledger` may be null; when given it must outlive the observer.
  Observer(const ModelConfig& config, DType acc, Device device, MemoryLedger* ledger)
      : config_(config), acc_(acc), device_(device), ledger_(ledger) {}

  struct Wanted {
    bool experts = false, entropy = false, choices = false, max_logits = false;
  };
  // Before a pass over num_sequences, in all micro-batches of this rank.
  void begin(const Wanted& wanted, int64_t num_sequences, Stream& stream);
  // Of a sublayer's micro-batch, whose sequences are [first_sequence, first_sequence + num_sequences) of the pass.
  SublayerProbes probes(int sublayer, int64_t first_sequence, int64_t num_sequences);
  // Of the pass; waits once. [sublayers of the model]: empty ones where probes() was not called.
  std::vector<SublayerStats> collect(Stream& stream);

 private:
  // Offsets in memory_, bytes; -1: not there.
  struct Place {
    int64_t expert_counts = -1, entropy = -1, balance = -1, max_logits = -1;
    bool seen = false;
    std::vector<int32_t> choices;
  };
  void lay_out();
  TensorView view(int64_t offset, DType dtype, const Shape& shape) const;

  const ModelConfig& config_;
  DType acc_;
  Device device_;
  MemoryLedger* ledger_;
  Wanted wanted_;
  int64_t num_sequences_ = 0, num_bytes_ = 0;
  Buffer memory_;
  std::vector<Place> places_;  // [sublayers of the model]
};

}  // namespace lamina::model
