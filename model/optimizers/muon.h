// Muon (arXiv 2502.16982, algorithm 1) over one data-parallel group: gathers each matrix's momentum from the ranks' shards to one
// owner, orthogonalises it there, once in the job, and brings the slices back.
#pragma once

#include "core/device/buffer.h"
#include "model/optimizers/muon_plan.h"
#include "model/optimizers/optimizer.h"

namespace lamina::model {

const Optimizer& muon_optimizer();

class MuonUpdate final : public GroupUpdate {
 public:
  explicit MuonUpdate(const GroupTensors& tensors);
  void step(ops::OpContext& ctx, const UpdateStep& step) override;

  const MuonPlan& plan() const { return plan_; }

 private:
  void run_round(ops::OpContext& ctx, const MuonRankRound& round, const UpdateStep& step);
  void apply(ops::OpContext& ctx, const OwnedSlice& own, const TensorView& update, const UpdateStep& step) const;
  const OwnedSlice& owned(const MuonSend& piece) const;

  double momentum_;
  comm::Communicator& owners_;
  DType products_, acc_;                     // of the products' operands; of everything else
  const std::vector<ParameterSpec>& specs_;  // those of Parameters
  std::vector<int> parameters_;              // [matrix], indices into Parameters
  std::map<int, OwnedSlice> slices_;         // by parameter
  MuonPlan plan_;
  std::vector<MuonRankRound> rounds_;
  Buffer message_, received_, assembled_;
};

}  // namespace lamina::model
