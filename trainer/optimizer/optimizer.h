// The optimizer sharded over data-parallel ranks (ZeRO-1, arXiv 1910.02054): each rank keeps masters and state of the slices
// that it owns, updates those, and the updated parameters are gathered. Each tensor has its own optimizer (model/optimizers),
// factor of the learning rate and weight decay (model/update_rules.h); the router's selection bias is only kept here.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "configs/schema/config.h"
#include "core/ops/op.h"
#include "model/optimizers/optimizer.h"
#include "model/parameters.h"
#include "trainer/checkpoint/checkpoint.h"

namespace lamina {

using model::OwnedSlice;

// The ranks that share out the optimizer's work, by group of parameters. They outlive the optimizer.
using OwnerGroups = std::array<comm::Communicator*, model::num_groups>;

class ShardedOptimizer {
 public:
  ShardedOptimizer(const Config& config, model::Parameters& parameters, const OwnerGroups& owners,
                   MemoryLedger* ledger);

  // Unrounded initial values into the masters of the owned slices.
  void initialise_masters(uint64_t seed, double initializer_range);
  // One update of everything owned. `lr` is that of a factor of one, `grad_scale` multiplies the gradients (clipping). The caller
  // gathers afterwards.
  // Collective over the owner groups.
  void step(ops::OpContext& ctx, int64_t step, double lr, double grad_scale);
  // Multiplies rows [begin, end) of a matrix where this rank owns them: the master, and the parameter from it. State stays.
  void scale_rows(ops::OpContext& ctx, int parameter, int64_t begin, int64_t end, double factor);
  // Rounds the owned masters into the parameters (after a load).
  void publish_masters(ops::OpContext& ctx);

  const std::vector<OwnedSlice>& owned() const { return owned_; }
  // What a checkpoint holds: parameters/<name> (the masters), and the state that the tensor's optimizer keeps, such as
  // optimizer/m/<name>. To be loaded: all that this rank owns; to be saved: the primary holder's, so that every element comes
  // from one rank.
  std::vector<TensorPiece> state() const;
  std::vector<TensorPiece> primary_state() const;
  // Null when the optimizer updates nothing in the group.
  const model::GroupUpdate* update(OptimizerName optimizer, model::Group group) const;

 private:
  using Runs = std::vector<model::OwnedRun>;
  const model::UpdateRule& rule_of(int parameter) const { return rules_[static_cast<size_t>(parameter)]; }
  void add_group(model::Group id, comm::Communicator& owners, MemoryLedger* ledger);
  Runs make_runs(const model::ParameterGroup& group, const std::vector<zero::OwnedPart>& parts,
                 std::vector<size_t>& run_of) const;
  void book(Runs& runs, model::ParameterGroup& group, MemoryLedger* ledger);
  void add_updates(model::Group id, const std::vector<OwnedSlice>& slices, const Runs& runs, comm::Communicator& owners,
                   MemoryLedger* ledger);
  std::vector<TensorPiece> pieces(bool primary_only) const;

  OptimizerConfig config_;
  std::vector<model::UpdateRule> rules_;  // per parameter
  model::Parameters& parameters_;
  std::vector<Buffer> buffers_;
  std::vector<OwnedSlice> owned_;
  std::vector<int> slice_of_;  // per parameter: index into owned_, or -1
  std::map<std::pair<OptimizerName, model::Group>, std::unique_ptr<model::GroupUpdate>> updates_;  // in a step's order
};

}  // namespace lamina
