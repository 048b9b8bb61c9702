#include "model/optimizers/adamw.h"

#include "core/ops/optimizer/adamw.h"

namespace lamina::model {
namespace {

class AdamWUpdate final : public GroupUpdate {
 public:
  explicit AdamWUpdate(const GroupTensors& tensors) : config_(tensors.config), runs_(tensors.runs) {}

  void step(ops::OpContext& ctx, const UpdateStep& step) override {
    for (const OwnedRun& run : runs_) {
      ops::AdamW args;
      args.master = run.master;
      args.grad = run.gradient;
      args.m = run.state[0];
      args.v = run.state[1];
      args.param = run.rounded();
      args.step = step.step;
      args.lr = step.lr * run.rule.lr_factor;
      args.beta1 = config_.beta1;
      args.beta2 = config_.beta2;
      args.eps = config_.eps;
      args.weight_decay = run.rule.weight_decay;
      args.grad_scale = step.grad_scale;
      ops::adamw(ctx, args);
    }
  }

 private:
  OptimizerConfig config_;
  std::vector<OwnedRun> runs_;
};

class AdamW final : public Optimizer {
 public:
  AdamW() : Optimizer({.name = OptimizerName::adamw, .title = "AdamW", .state = {{"m"}, {"v"}}}) {}

  double width_factor(const WidthFactors& width) const override { return width.elementwise; }
  std::vector<Operation> operations(const ShapeCounts& shapes, const ElementSizes& s, double share) const override {
    double elements = 0;
    for (const auto& [shape, count] : shapes)
      elements += count * static_cast<double>(shape.first) * static_cast<double>(shape.second);
    const double separate = s.compute < s.accumulation ? s.compute : 0;
    const Work work{0, share * elements * (7 * s.accumulation + separate), 1};
    return {{"AdamW", "adamw", Phase::update, KernelClass::products, work, 1}};
  }
  std::unique_ptr<GroupUpdate> make_update(const GroupTensors& tensors) const override {
    return std::make_unique<AdamWUpdate>(tensors);
  }
};

}  // namespace

const Optimizer& adamw_optimizer() {
  static const AdamW optimizer;
  return optimizer;
}

}  // namespace lamina::model
