#include "trainer/step/layer_stats.h"

#include <algorithm>
#include <cmath>

#include "core/ops/elementwise/elementwise.h"

namespace lamina {
namespace {

// Squares of weights and gradients per parameter, this rank's slices.
std::vector<double> owned_squares(Engine& engine) {
  std::vector<double> squares(2 * engine.parameters().specs().size(), 0.0);
  std::vector<TensorView> tensors;
  std::vector<size_t> places;  // in `squares`
  for (const OwnedSlice& slice : engine.optimizer().owned()) {
    if (!engine.parameters().is_primary(slice.parameter)) continue;
    const size_t at = 2 * static_cast<size_t>(slice.parameter);
    tensors.insert(tensors.end(), {slice.master, slice.gradient});
    places.insert(places.end(), {at, at + 1});
  }
  std::vector<double> found(tensors.size());
  ops::sum_squares(engine.context(), {tensors, found});
  for (size_t i = 0; i < found.size(); ++i) squares[places[i]] += found[i];
  return squares;
}

void sum_over_ranks(std::vector<double>& values, comm::Communicator& comm) {
  Stream stream;
  const TensorView view(values.data(), DType::f64, {static_cast<int64_t>(values.size())});
  comm.all_reduce(view, comm::ReduceOp::sum, stream).wait();
}

// What a sublayer's router or attention saw, as numbers to be summed over the job: of the ranks that saw the same, one counts.
int64_t num_observations(const ModelConfig& config, int site) {
  if (site >= 2 * config.num_hidden_layers) return 0;
  if (site % 2 == 1) return config.is_moe(site / 2) ? config.num_experts + 2 : 0;
  return config.mixer(site / 2) == Mixer::mla ? 1 : 0;
}

void append_observations(Engine& engine, int site, std::vector<double>& flat) {
  const auto count = static_cast<size_t>(num_observations(engine.config().model, site));
  std::vector<double> values(count, 0.0);
  if (count > 0 && engine.place().dp_rank == 0) {
    const model::SublayerStats& seen = engine.observations().sublayers[static_cast<size_t>(site)];
    if (!seen.expert_counts.empty()) {
      values = seen.expert_counts;
      values.insert(values.end(), {seen.balance_loss, seen.entropy});
    } else if (!seen.max_logits.empty()) {
      values[0] = *std::max_element(seen.max_logits.begin(), seen.max_logits.end());
    }
  }
  flat.insert(flat.end(), values.begin(), values.end());
}

// values: of one site, summed.
void add_observations(const std::vector<double>& values, double num_tokens, bool is_mixer, JsonRow& row) {
  if (values.empty()) return;
  if (is_mixer) {
    if (values[0] != 0) row.add("max_logit", values[0]);
    return;
  }
  std::vector<double> load(values.begin(), values.end() - 2);
  double mean = 0;
  for (double count : load) mean += count / static_cast<double>(load.size());
  for (double& count : load) count /= mean;
  row.add("expert_load", std::span<const double>(load));
  row.add("max_violation", *std::max_element(load.begin(), load.end()) - 1.0);
  row.add("dead_experts", static_cast<int64_t>(std::count(load.begin(), load.end(), 0.0)));
  row.add("balance_loss", values[values.size() - 2]).add("router_entropy", values.back() / num_tokens);
}

}  // namespace

LayerStats layer_stats(Engine& engine, comm::Communicator& comm, int64_t step, int64_t hidden_size,
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
    flat.insert(flat.end(), {sum.depth_entropy, sum.depth_largest});
    append_observations(engine, static_cast<int>(site), flat);
  }
  std::vector<double> cosines = sums.empty() ? std::vector<double>() : sums.back().source_cosines;
  cosines.resize(static_cast<size_t>(model::num_source_cosines(blocks)));
  flat.insert(flat.end(), cosines.begin(), cosines.end());
  sum_over_ranks(flat, comm);

  const auto over_micro_batches = [&](double value) { return value / static_cast<double>(totals.num_micro_batches); };
  const double elements = static_cast<double>(totals.num_tokens) * static_cast<double>(hidden_size);
  const auto rms = [&](double square) { return std::sqrt(square / elements); };
  LayerStats stats;
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
    DepthRead read;
    read.site = static_cast<int>(site);
    const auto num_weights = static_cast<size_t>(model::num_depth_weights(blocks, read.site));
    for (size_t i = 0; i < num_weights; ++i) read.weights.push_back(over_micro_batches(flat[at + i]));
    at += num_weights;
    read.entropy = over_micro_batches(flat[at]);
    read.largest_weight = over_micro_batches(flat[at + 1]);
    at += 2;
    if (num_weights > 0) {
      row.add("depth_weights", std::span<const double>(read.weights));
      row.add("depth_entropy", read.entropy).add("depth_largest", read.largest_weight);
      stats.reads.push_back(std::move(read));
    }
    const auto begin = flat.begin() + static_cast<int64_t>(at);
    const int64_t observed = num_observations(engine.config().model, static_cast<int>(site));
    add_observations({begin, begin + observed}, static_cast<double>(totals.num_tokens), site % 2 == 0, row);
    at += static_cast<size_t>(observed);
    stats.rows.push_back(std::move(row));
  }
  for (double& cosine : cosines) cosine = over_micro_batches(flat[at++]);
  if (!cosines.empty()) stats.rows.back().add("source_cosines", std::span<const double>(cosines));
  return stats;
}

QueryUpdates::QueryUpdates(Engine& engine)
    : engine_(engine), squares_(2 * static_cast<size_t>(engine.num_sites()), 0.0) {
  for (const OwnedSlice& slice : engine.optimizer().owned()) {
    const model::ParameterSpec& spec = engine.parameters().specs()[static_cast<size_t>(slice.parameter)];
    if (!spec.name.ends_with("_res_proj.weight") || !engine.parameters().is_primary(slice.parameter)) continue;
    const TensorView& now = slice.master;
    Buffer& copy =
        before_.emplace_back(Before{&slice, Buffer(now.num_bytes(), now.device, nullptr, "observations")}).negated;
    const TensorView view(copy.data(), now.dtype, now.shape, now.device);
    ops::cast(engine.context(), {now, view});
    ops::scale(engine.context(), {view, -1.0});
    squares_[2 * static_cast<size_t>(spec.site)] += ops::sum_squares(engine.context(), now);
  }
}

void QueryUpdates::add_to(std::vector<JsonRow>& rows, comm::Communicator& comm) {
  for (const Before& before : before_) {
    const model::ParameterSpec& spec = engine_.parameters().specs()[static_cast<size_t>(before.slice->parameter)];
    const TensorView& now = before.slice->master;
    const TensorView view(before.negated.data(), now.dtype, now.shape, now.device);
    ops::add(engine_.context(), {now, view, view});
    squares_[2 * static_cast<size_t>(spec.site) + 1] += ops::sum_squares(engine_.context(), view);
  }
  if (!engine_.config().model.has_depth_reads()) return;
  sum_over_ranks(squares_, comm);
  for (size_t site = 0; site < rows.size(); ++site)
    rows[site].add("query_norm", std::sqrt(squares_[2 * site])).add("query_update", std::sqrt(squares_[2 * site + 1]));
}

}  // namespace lamina
