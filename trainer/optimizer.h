// AdamW sharded over data-parallel ranks (ZeRO-1, arXiv 1910.02054): each rank keeps masters and moments of the slices that
// it owns, updates those, and the updated parameters are gathered.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/ops/op.h"
#include "model/parameters.h"
#include "trainer/checkpoint.h"

namespace lamina {

// A range of one parameter that this rank owns. Views are one-dimensional, [end - begin].
struct OwnedSlice {
  int parameter = 0;           // index into Parameters
  int64_t begin = 0, end = 0;  // elements of the parameter
  TensorView value;            // compute dtype
  TensorView gradient;         // acc
  TensorView master;           // acc; `value` itself when that is the accumulation dtype
};

class ShardedAdamW {
 public:
  ShardedAdamW(const OptimizerConfig& config, model::Parameters& parameters, int dp_rank, MemoryLedger* ledger);

  // Unrounded initial values into the masters of the owned slices.
  void initialise_masters(uint64_t seed, double initializer_range);
  // One update of everything owned. `grad_scale` multiplies the gradients (clipping). The caller gathers afterwards.
  void step(ops::OpContext& ctx, int64_t step, double lr, double grad_scale);
  // Rounds the owned masters into the parameters (after a load).
  void publish_masters(ops::OpContext& ctx);

  const std::vector<OwnedSlice>& owned() const { return owned_; }
  // What a checkpoint holds: parameters/<name> (the masters), optimizer/m/<name>, optimizer/v/<name>. To be loaded: all that
  // this rank owns; to be saved: the primary holder's, so that every element comes from one rank.
  std::vector<TensorPiece> state() const;
  std::vector<TensorPiece> primary_state() const;

 private:
  struct Shard {  // one bucket's owned interval, padding included
    TensorView value, gradient, master, m, v;
  };
  struct GroupState {
    Buffer masters, m, v;
    std::vector<Shard> shards;
  };
  void add_group(model::ParameterGroup& group, int dp_rank, MemoryLedger* ledger);

  OptimizerConfig config_;
  model::Parameters& parameters_;
  std::vector<TensorPiece> pieces(bool primary_only) const;

  std::vector<GroupState> groups_;
  std::vector<OwnedSlice> owned_;
  std::vector<TensorView> m_, v_;  // per owned slice
};

}  // namespace lamina
