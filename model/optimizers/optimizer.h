// What an optimizer is to everyone who asks: one object each, found in the list of optimizers.cpp. One more is a pair of files beside
// adamw.h and adamw.cpp, and a line there (docs/extending.md).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "configs/schema/config.h"
#include "core/ops/op.h"
#include "model/operations.h"
#include "model/parameters.h"
#include "model/update_rules.h"
#include "model/width_rule.h"
#include "parallel/comm/communicator.h"

namespace lamina::model {

// What one rank owns, and how it is updated. Views are one-dimensional, of equal length.
struct OwnedElements {
  UpdateRule rule;
  TensorView value;               // compute dtype
  TensorView gradient;            // acc
  TensorView master;              // acc; `value` itself when that is the accumulation dtype
  std::vector<TensorView> state;  // in the order of Optimizer::Facts::state

  // What receives the rounded master; empty where the master is the parameter itself.
  TensorView rounded() const { return master.data == value.data ? TensorView() : value; }
};
struct OwnedSlice : OwnedElements {  // of one parameter
  int parameter = 0;                 // index into Parameters
  int64_t begin = 0, end = 0;        // elements of the parameter
};
struct OwnedRun : OwnedElements {  // neighbours in memory that are updated alike, the padding between them included
  int64_t begin = 0, end = 0;      // elements of the group's flat buffer
  int64_t size() const { return end - begin; }
};

// What one optimizer updates in one group of parameters.
struct GroupTensors {
  const OptimizerConfig& config;
  const std::vector<ParameterSpec>& specs;
  const ParameterGroup& group;
  std::vector<int> members;        // indices into group.flat, whichever rank owns them
  std::vector<OwnedSlice> slices;  // of this rank, in the order of the group
  std::vector<OwnedRun> runs;      // the same elements
  comm::Communicator& owners;      // the ranks that share the group out
  MemoryLedger* ledger;            // may be null
};

struct UpdateStep {
  int64_t step = 1;       // counted from 1
  double lr = 0;          // of a factor of one
  double grad_scale = 1;  // multiplies the gradients (clipping)
};

class GroupUpdate {
 public:
  virtual ~GroupUpdate() = default;
  // Updates masters, parameters and state. Collective over the owners.
  virtual void step(ops::OpContext& ctx, const UpdateStep& step) = 0;
};

// [first dimension, all others]
std::pair<int64_t, int64_t> rows_and_columns(const Shape& shape);
// How many tensors there are of each rows and columns.
using ShapeCounts = std::map<std::pair<int64_t, int64_t>, double>;

class Optimizer {
 public:
  struct StateTensor {             // of the parameter's shape
    const char* name = "";         // a checkpoint has it as optimizer/<name>/<parameter>
    std::optional<DType> dtype{};  // absent: the accumulation dtype
  };
  struct Facts {
    OptimizerName name = OptimizerName::adamw;
    const char* title = "";  // for people: "AdamW"
    std::vector<StateTensor> state;
    bool matrices_only = false;  // as train.optimizer.name it has the matrices of linear layers, AdamW everything else
    bool clips_query_keys = false;  // as train.optimizer.name: QK-Clip goes with it
    const char* products = "";      // what it multiplies matrices for; empty: it doesn't
  };

  explicit Optimizer(Facts facts) : facts_(std::move(facts)) {}
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;
  virtual ~Optimizer() = default;

  const Facts& facts() const { return facts_; }
  // Bytes of state per element; `accumulation`: bytes of the accumulation dtype.
  double state_bytes(double accumulation) const;

  // Of the learning rate, at this width.
  virtual double width_factor(const WidthFactors& width) const = 0;
  // Of the products in one update of a matrix.
  virtual double flops(int64_t rows, int64_t columns) const;
  // On a GPU, of one rank that does `share` of the updates of these tensors.
  virtual std::vector<Operation> operations(const ShapeCounts& shapes, const ElementSizes& sizes,
                                            double share) const = 0;
  // Made on every rank that shares the group out, also on one that owns nothing of it. The views outlive it.
  virtual std::unique_ptr<GroupUpdate> make_update(const GroupTensors& tensors) const = 0;

 private:
  Facts facts_;
};

// All, in the order of OptimizerName.
std::span<const Optimizer* const> optimizers();
const Optimizer& optimizer_of(OptimizerName name);
// With train.optimizer.name: what updates the tensors that are no matrix of a linear layer.
const Optimizer& optimizer_of_the_rest(OptimizerName name);

}  // namespace lamina::model
