#include "model/optimizers/muon.h"

#include <algorithm>
#include <cmath>

#include "core/base/error.h"
#include "core/ops/elementwise/elementwise.h"
#include "core/ops/optimizer/muon.h"
#include "core/ops/optimizer/newton_schulz.h"
#include "core/tensor/elements.h"

namespace lamina::model {
namespace {

// Of what an owner assembles at a time: 64 MiB in fp32.
constexpr int64_t round_elements = int64_t{16} << 20;

class Muon final : public Optimizer {
 public:
  Muon()
      : Optimizer({.name = OptimizerName::muon,
                   .title = "Muon",
                   .state = {{"momentum"}},
                   .matrices_only = true,
                   .clips_query_keys = true,
                   .products = "Newton-Schulz"}) {}

  double width_factor(const WidthFactors& width) const override { return width.orthogonal; }
  double flops(int64_t rows, int64_t columns) const override {
    return static_cast<double>(newton_schulz_cost(rows, columns));
  }

  std::vector<Operation> operations(const ShapeCounts& shapes, const ElementSizes& s, double share) const override {
    const double a = s.accumulation, b = s.compute, separate = b < a ? b : 0;
    std::vector<Operation> operations;
    const auto add = [&](const char* name, const char* op, const Work& work, double calls) {
      operations.push_back({name, op, Phase::update, KernelClass::products, work, calls});
    };
    for (const auto& [shape, count] : shapes) {
      const auto [rows, columns] = shape;
      const int64_t side = std::min(rows, columns);
      const double size = static_cast<double>(rows) * static_cast<double>(columns),
                   square = static_cast<double>(side) * static_cast<double>(side), calls = share * count;
      add("Muon: momentum", "muon_momentum", {0, size * 4 * a, 1}, calls);
      add("Muon: messages", "cast", {0, size * 2 * a, 1}, 2 * calls);
      // Normalised, then five times: rounded, Gram matrix, rounded, its square, rounded, product.
      add("Muon: Newton-Schulz", "newton_schulz",
          {flops(rows, columns), 5 * (size * (3 * a + 3 * b) + square * (5 * a + 4 * b)) + 2 * size * a,
           (2 + 5 * 6 - 1) / static_cast<double>(ops::matrices_per_call(side))},
          calls);
      add("Muon: step", "muon_apply", {0, size * (3 * a + separate), 1}, calls);
    }
    return operations;
  }

  std::unique_ptr<GroupUpdate> make_update(const GroupTensors& tensors) const override {
    return std::make_unique<MuonUpdate>(tensors);
  }
};

}  // namespace

const Optimizer& muon_optimizer() {
  static const Muon optimizer;
  return optimizer;
}

MuonUpdate::MuonUpdate(const GroupTensors& tensors)
    : momentum_(tensors.config.momentum),
      owners_(tensors.owners),
      products_(tensors.group.dtype),
      acc_(accumulation_dtype(tensors.group.dtype)),
      specs_(tensors.specs) {
  const ParameterGroup& group = tensors.group;
  std::vector<MuonMatrix> matrices;
  for (int i : tensors.members) {
    const int parameter = group.spec_of[static_cast<size_t>(i)];
    const ParameterSpec& spec = specs_[static_cast<size_t>(parameter)];
    parameters_.push_back(parameter);
    matrices.push_back({spec.name, spec.shape[0], spec.shape[1], muon_parts(group.shards, group.flat, i)});
  }
  for (const OwnedSlice& slice : tensors.slices) slices_.emplace(slice.parameter, slice);
  plan_ = make_muon_plan(matrices, owners_.size(), round_elements);
  rounds_ = muon_rank_rounds(plan_, matrices, owners_.rank());
  const auto messages = [&](int64_t count) {
    return Buffer(count * size_of(acc_), group.values.device(), tensors.ledger, "optimizer messages");
  };
  message_ = messages(max_sent(rounds_));
  received_ = messages(max_received(rounds_));
  assembled_ = messages(max_received(rounds_));
}

void MuonUpdate::step(ops::OpContext& ctx, const UpdateStep& step) {
  for (const MuonRankRound& round : rounds_) run_round(ctx, round, step);
}

void MuonUpdate::run_round(ops::OpContext& ctx, const MuonRankRound& round, const UpdateStep& step) {
  const auto message_of = [&](const MuonSend& piece) {
    return elements_of(message_, acc_, piece.message_offset, piece.end - piece.begin);
  };
  for (const MuonSend& piece : round.sent) {
    const OwnedSlice& own = owned(piece);
    ops::muon_momentum(ctx, {own.gradient, own.state[0], message_of(piece), momentum_, step.grad_scale});
  }
  const TensorView message = elements_of(message_, acc_, 0, round.num_sent);
  const TensorView received = elements_of(received_, acc_, 0, round.num_received);
  owners_.all_to_all_v(message, round.send_counts, received, round.receive_counts, ctx.stream).wait();
  for (const MuonReceive& copy : round.received)
    ops::cast(ctx, {elements_of(received_, acc_, copy.message_offset, copy.num_elements),
                    elements_of(assembled_, acc_, copy.assembled_offset, copy.num_elements)});
  for (const MuonBatch& batch : round.batches) {
    const TensorView flat = elements_of(assembled_, acc_, batch.offset, batch.count * batch.rows * batch.columns);
    ops::newton_schulz(ctx, {flat.reshaped({batch.count, batch.rows, batch.columns}), products_});
  }
  for (const MuonReceive& copy : round.received)
    ops::cast(ctx, {elements_of(assembled_, acc_, copy.assembled_offset, copy.num_elements),
                    elements_of(received_, acc_, copy.message_offset, copy.num_elements)});
  owners_.all_to_all_v(received, round.receive_counts, message, round.send_counts, ctx.stream).wait();
  for (const MuonSend& piece : round.sent) apply(ctx, owned(piece), message_of(piece), step);
}

void MuonUpdate::apply(ops::OpContext& ctx, const OwnedSlice& own, const TensorView& update,
                       const UpdateStep& step) const {
  const Shape& shape = specs_[static_cast<size_t>(own.parameter)].shape;
  const auto longer = static_cast<double>(std::max(shape[0], shape[1]));
  ops::muon_apply(ctx, {update, own.master, own.rounded(), step.lr * own.rule.lr_factor, own.rule.weight_decay,
                        0.2 * std::sqrt(longer)});
}

const OwnedSlice& MuonUpdate::owned(const MuonSend& piece) const {
  const OwnedSlice& own = slices_.at(parameters_[static_cast<size_t>(piece.matrix)]);
  LAMINA_CHECK(own.begin == piece.begin && own.end == piece.end);
  return own;
}

}  // namespace lamina::model
