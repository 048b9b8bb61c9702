// The orthogonalised updates of Muon over one data-parallel group: gathers each matrix's momentum from the ranks' shards to one
// owner, orthogonalises it there, once in the job, and brings the slices back (arXiv 2502.16982, algorithm 1).
#pragma once

#include <functional>
#include <vector>

#include "core/device/buffer.h"
#include "core/ops/op.h"
#include "model/parameters.h"
#include "parallel/comm/communicator.h"
#include "trainer/optimizer/muon_plan.h"

namespace lamina {

class MuonGroup {
 public:
  // The matrices of one parameter group that Muon updates: is_matrix says which of its tensors. `group` holds the ranks that share
  // it out.
  MuonGroup(const std::vector<model::ParameterSpec>& specs, const model::ParameterGroup& parameters,
            const std::vector<bool>& is_matrix, comm::Communicator& group, MemoryLedger* ledger);

  // Elements [begin, end) of a parameter that this rank owns.
  struct Slice {
    int parameter = 0;
    int64_t begin = 0, end = 0;
  };
  using Visit = std::function<void(const Slice& slice, TensorView data)>;  // data [end - begin] acc
  // `write` fills each owned slice's momentum; `apply` gets its part of the orthogonalised matrix. `products`: dtype of the
  // products' operands. Collective.
  void orthogonalise(ops::OpContext& ctx, DType products, const Visit& write, const Visit& apply);

  const MuonPlan& plan() const { return plan_; }

 private:
  void run_round(ops::OpContext& ctx, DType products, const MuonRankRound& round, const Visit& write,
                 const Visit& apply);

  comm::Communicator& group_;
  DType acc_;
  std::vector<int> parameters_;  // [matrix], indices into Parameters
  MuonPlan plan_;
  std::vector<MuonRankRound> rounds_;
  Buffer message_, received_, assembled_;
};

}  // namespace lamina
