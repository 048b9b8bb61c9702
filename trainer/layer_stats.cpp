#include "trainer/layer_stats.h"

#include <cmath>

#include "core/ops/elementwise.h"

namespace lamina {
namespace {

// Squares of weights and gradients per parameter, this rank's slices.
std::vector<double> owned_squares(Engine& engine) {
  std::vector<double> squares(2 * engine.parameters().specs().size(), 0.0);
  for (const OwnedSlice& slice : engine.optimizer().owned()) {
    if (!engine.parameters().is_primary(slice.parameter)) continue;
    double weight = 0, gradient = 0;
    ops::sum_squares(engine.context(), {slice.master, &weight});
    ops::sum_squares(engine.context(), {slice.gradient, &gradient});
    squares[2 * static_cast<size_t>(slice.parameter)] += weight;
    squares[2 * static_cast<size_t>(slice.parameter) + 1] += gradient;
  }
  return squares;
}

void sum_over_ranks(std::vector<double>& values, comm::Communicator& comm) {
  Stream stream;
  const TensorView view(values.data(), DType::f64, {static_cast<int64_t>(values.size())});
  comm.all_reduce(view, comm::ReduceOp::sum, stream).wait();
}

}  // namespace

std::vector<JsonRow> layer_stats_rows(Engine& engine, comm::Communicator& comm, int64_t step, int64_t hidden_size,
                                      const std::vector<model::LayerSums>& sums, const LayerStatsTotals& totals) {
  std::vector<double> flat = owned_squares(engine);
  const size_t num_squares = flat.size();
  // A site is observed by the pipeline rank that holds it; the others add zeros.
  const pipeline::BlockLayout& blocks = engine.stage().plan().blocks;
  for (size_t site = 0; site < sums.size(); ++site) {
    const model::LayerSums& sum = sums[site];
    flat.insert(flat.end(), {sum.hidden_square, sum.output_square, sum.gradient_square});
    std::vector<double> weights = sum.depth_weights;
    weights.resize(static_cast<size_t>(model::num_depth_weights(blocks, static_cast<int>(site))));
    flat.insert(flat.end(), weights.begin(), weights.end());
  }
  sum_over_ranks(flat, comm);

  const double elements = static_cast<double>(totals.num_tokens) * static_cast<double>(hidden_size);
  const auto rms = [&](double square) { return std::sqrt(square / elements); };
  std::vector<JsonRow> rows;
  size_t at = num_squares;
  for (size_t site = 0; site < sums.size(); ++site) {
    const bool is_output = site + 1 == sums.size();
    JsonRow row;
    row.add("step", step).add("layer", static_cast<int64_t>(site / 2));
    row.add("sublayer", is_output ? "output" : (site % 2 == 0 ? "mixer" : "mlp"));
    row.add("hidden_rms", rms(flat[at]));
    if (!is_output) {
      double weight = 0, gradient = 0;
      for (size_t parameter = 0; parameter < engine.parameters().specs().size(); ++parameter) {
        if (engine.parameters().specs()[parameter].site != static_cast<int>(site)) continue;
        weight += flat[2 * parameter];
        gradient += flat[2 * parameter + 1];
      }
      row.add("output_rms", rms(flat[at + 1])).add("grad_rms", rms(flat[at + 2]));
      row.add("weight_norm", std::sqrt(weight)).add("grad_norm", std::sqrt(gradient));
    }
    at += 3;
    std::vector<double> weights(
        flat.begin() + static_cast<int64_t>(at),
        flat.begin() + static_cast<int64_t>(at) + model::num_depth_weights(blocks, static_cast<int>(site)));
    for (double& weight : weights) weight /= static_cast<double>(totals.num_micro_batches);
    if (!weights.empty()) row.add("depth_weights", std::span<const double>(weights));
    at += weights.size();
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace lamina
