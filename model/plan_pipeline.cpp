#include "model/plan_pipeline.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "core/base/error.h"

namespace lamina::model {
namespace {

using pipeline::Action;
using pipeline::ActionKind;

// What a chunk's backward opens and closes in its cache, summaries by number.
struct GradientUse {
  std::vector<int> opened, closed;
};

std::vector<GradientUse> gradient_uses(const pipeline::BlockRoutes& routes) {
  std::vector<GradientUse> uses;
  for (const pipeline::ChunkRoutes& chunk : routes.chunks) {
    GradientUse use;
    // Its reads deposit, and so does the hop on which it sent: that gradient comes back before this backward.
    use.opened = chunk.reads;
    use.opened.insert(use.opened.end(), chunk.sent.begin(), chunk.sent.end());
    use.closed = chunk.received;
    use.closed.insert(use.closed.end(), chunk.finished.begin(), chunk.finished.end());
    if (chunk.arrives_as_stream >= 0) use.closed.push_back(chunk.arrives_as_stream);
    if (chunk.leaves_as_stream >= 0) use.closed.push_back(chunk.leaves_as_stream);
    uses.push_back(std::move(use));
  }
  return uses;
}

// Figure by figure, after + (after - before) * rounds.
struct Extrapolation {
  double rounds = 0;
  double operator()(double before, double after) const { return after + (after - before) * rounds; }
  std::vector<double> operator()(const std::vector<double>& before, const std::vector<double>& after) const {
    std::vector<double> result(after.size());
    for (size_t i = 0; i < after.size(); ++i) result[i] = (*this)(before[i], after[i]);
    return result;
  }
  PipelineRun operator()(const PipelineRun& before, const PipelineRun& after) const {
    return {(*this)(before.makespan, after.makespan), (*this)(before.peak_microbatches, after.peak_microbatches),
            (*this)(before.peak_summaries, after.peak_summaries),
            (*this)(before.peak_summary_gradients, after.peak_summary_gradients)};
  }
};

bool same(double a, double b) {
  return std::abs(a - b) <= 1e-9 * std::max(std::abs(a), std::abs(b));
}
bool same(const std::vector<double>& a, const std::vector<double>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](double x, double y) { return same(x, y); });
}
bool same(const PipelineRun& a, const PipelineRun& b) {
  return same(a.makespan, b.makespan) && same(a.peak_microbatches, b.peak_microbatches) &&
         same(a.peak_summaries, b.peak_summaries) && same(a.peak_summary_gradients, b.peak_summary_gradients);
}

std::vector<double> as_numbers(const std::vector<int>& counts) {
  return {counts.begin(), counts.end()};
}

}  // namespace

std::vector<int> peak_summary_gradients(const pipeline::BlockRoutes& routes, const pipeline::Schedule& schedule) {
  const std::vector<GradientUse> uses = gradient_uses(routes);
  std::vector<int> peaks;
  for (const auto& actions : schedule) {
    std::set<std::tuple<int, int, int>> alive;  // micro-batch, cache, summary
    size_t peak = 0;
    for (const Action& action : actions) {
      if (action.kind != ActionKind::backward && action.kind != ActionKind::backward_input) continue;
      const GradientUse& use = uses[static_cast<size_t>(action.chunk)];
      const int cache = routes.cache_of(action.chunk);
      for (int summary : use.opened) alive.emplace(action.microbatch, cache, summary);
      peak = std::max(peak, alive.size());
      for (int summary : use.closed) alive.erase({action.microbatch, cache, summary});
    }
    peaks.push_back(static_cast<int>(peak));
  }
  return peaks;
}

PipelineRun run_whole_pipeline(const PipelineShape& shape, const pipeline::ChunkCosts& costs,
                               const pipeline::BlockRoutes& routes) {
  const auto num_chunks = static_cast<int>(costs.forward.size());
  const pipeline::Schedule schedule = pipeline::make_schedule(
      shape.schedule, shape.num_ranks, num_chunks, static_cast<int>(shape.num_microbatches), &shape.order_costs);
  const pipeline::Timeline timeline = pipeline::simulate(schedule, costs);
  return {timeline.makespan, as_numbers(timeline.peak_microbatches),
          as_numbers(pipeline::peak_summaries(routes, schedule)), as_numbers(peak_summary_gradients(routes, schedule))};
}

PipelineRun run_pipeline(const PipelineShape& shape, const pipeline::ChunkCosts& costs,
                         const pipeline::BlockRoutes& routes) {
  const int64_t round = shape.num_ranks, remainder = shape.num_microbatches % round;
  const auto run = [&](int64_t microbatches) {
    PipelineShape part = shape;
    part.num_microbatches = microbatches;
    return run_whole_pipeline(part, costs, routes);
  };
  const auto virtual_stages = static_cast<int64_t>(costs.forward.size()) / shape.num_ranks;
  for (int64_t rounds = 8 + 2 * virtual_stages; (rounds + 3) * round + remainder < shape.num_microbatches;
       rounds *= 2) {
    const int64_t first = rounds * round + remainder;
    const PipelineRun a = run(first), b = run(first + round), c = run(first + 2 * round), d = run(first + 3 * round);
    if (!same(Extrapolation{1}(a, b), c) || !same(Extrapolation{1}(b, c), d)) continue;
    const int64_t missing = (shape.num_microbatches - first) / round - 3;
    return Extrapolation{static_cast<double>(missing)}(c, d);
  }
  return run(shape.num_microbatches);
}

}  // namespace lamina::model
