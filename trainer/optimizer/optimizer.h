// The optimizer sharded over data-parallel ranks (ZeRO-1, arXiv 1910.02054): each rank keeps masters and state of the slices
// that it owns, updates those, and the updated parameters are gathered. AdamW, or Muon for the matrices of linear layers and
// AdamW for the rest (arXiv 2502.16982), each tensor at its own factor of the learning rate and with its own weight decay
// (model/update_rules.h); the router's selection bias is only kept here.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/ops/op.h"
#include "model/parameters.h"
#include "model/update_rules.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/optimizer/muon.h"

namespace lamina {

// A range of one parameter that this rank owns. Views are one-dimensional, [end - begin].
struct OwnedSlice {
  int parameter = 0;           // index into Parameters
  int64_t begin = 0, end = 0;  // elements of the parameter
  TensorView value;            // compute dtype
  TensorView gradient;         // acc
  TensorView master;           // acc; `value` itself when that is the accumulation dtype
};

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
  // What a checkpoint holds: parameters/<name> (the masters), optimizer/m/<name>, optimizer/v/<name>; of a matrix under Muon
  // optimizer/momentum/<name>. To be loaded: all that this rank owns; to be saved: the primary holder's, so that every element
  // comes from one rank.
  std::vector<TensorPiece> state() const;
  std::vector<TensorPiece> primary_state() const;
  // Of one group's matrices; null when it has none that Muon updates.
  const MuonGroup* muon(model::Group group) const { return muon_[static_cast<size_t>(group)].get(); }

 private:
  struct Run {                   // of neighbours in memory that are updated alike, the padding between them included
    int64_t begin = 0, end = 0;  // elements of the group's flat buffer
    model::UpdateRule rule;
    TensorView value, gradient, master, m, v;  // m: the momentum with Muon
    int64_t size() const { return end - begin; }
  };
  const model::UpdateRule& rule_of(int parameter) const { return rules_[static_cast<size_t>(parameter)]; }
  void add_group(model::ParameterGroup& group, int rank, MemoryLedger* ledger);
  std::vector<Run> make_runs(const model::ParameterGroup& group, const std::vector<zero::OwnedPart>& parts,
                             std::vector<size_t>& run_of) const;
  void book(std::vector<Run>& runs, model::ParameterGroup& group, MemoryLedger* ledger);
  void step_muon(ops::OpContext& ctx, double lr, double grad_scale);
  std::vector<TensorPiece> pieces(bool primary_only) const;

  OptimizerConfig config_;
  std::vector<model::UpdateRule> rules_;  // per parameter
  model::Parameters& parameters_;
  std::vector<Buffer> buffers_;
  std::vector<Run> runs_;
  std::vector<OwnedSlice> owned_;
  std::vector<TensorView> m_, v_;  // per owned slice; empty where there are none
  std::vector<int> slice_of_;      // per parameter: index into owned_, or -1
  std::array<std::unique_ptr<MuonGroup>, model::num_groups> muon_;
};

}  // namespace lamina
