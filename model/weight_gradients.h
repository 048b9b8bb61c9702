// Weight gradients of linear layers, dw += dy^T x: computed at once, or kept for a later action (the schedules that split the
// backward pass, arXiv 2401.10241).
#pragma once

#include <span>
#include <vector>

#include "core/ops/experts/experts.h"

namespace lamina::model {

class WeightGradients {
 public:
  WeightGradients(Device device, MemoryLedger* ledger) : arena_(device, ledger, "deferred weight gradients") {}

  // At the start of a backward pass. When deferred, what add() gets must live until run(): in operands(), or in memory
  // that nobody touches until then.
  void begin(bool deferred);
  bool deferred() const { return deferred_; }
  // Where to take operands from: this object's own memory when deferred, otherwise scratch.
  Arena& operands(ops::OpContext& ctx) { return deferred_ ? arena_ : ctx.scratch; }

  void add(ops::OpContext& ctx, const TensorView& dy, const TensorView& x, const TensorView& dw);
  // The same for rows grouped by expert; what the host knows of them is copied, as `dweights` are.
  void add_grouped(ops::OpContext& ctx, const TensorView& dy, const TensorView& x, const ops::ExpertRows& rows,
                   std::span<const TensorView> dweights);
  void run(ops::OpContext& ctx);  // the deferred ones, in the order of add(); forgets their operands
  Arena& memory() { return arena_; }

 private:
  struct Product {
    TensorView dy, x;
    std::vector<TensorView> dweights;
    TensorView offsets;  // empty: one plain product
    std::vector<int64_t> host_offsets;
  };
  Arena arena_;
  bool deferred_ = false;
  std::vector<Product> products_;
};

}  // namespace lamina::model
