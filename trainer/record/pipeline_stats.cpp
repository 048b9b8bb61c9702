#include "trainer/record/pipeline_stats.h"

#include <vector>

namespace lamina {

MeasuredCosts measured_costs(comm::Communicator& world, const pipeline::ExecutionReport& execution, int pp_rank,
                             int num_chunks, int num_data_ranks) {
  constexpr size_t num_kinds = 4;
  const size_t num_ranks = static_cast<size_t>(num_chunks) / execution.costs.size();
  Stream stream;
  // Mean seconds per action of each chunk and kind, then busy time; each chunk is on num_data_ranks ranks.
  std::vector<double> sums(static_cast<size_t>(num_chunks) * num_kinds + 1);
  for (size_t local = 0; local < execution.costs.size(); ++local)
    for (size_t kind = 0; kind < num_kinds; ++kind) {
      const auto& cost = execution.costs[local][kind];
      const size_t chunk = local * num_ranks + static_cast<size_t>(pp_rank);
      if (cost.count > 0) sums[chunk * num_kinds + kind] = cost.seconds / static_cast<double>(cost.count);
    }
  sums.back() = execution.busy_seconds;
  world
      .all_reduce(TensorView(sums.data(), DType::f64, {static_cast<int64_t>(sums.size())}), comm::ReduceOp::sum, stream)
      .wait();
  MeasuredCosts measured;
  for (size_t chunk = 0; chunk < static_cast<size_t>(num_chunks); ++chunk) {
    const auto mean = [&](pipeline::ActionKind kind) {
      return sums[chunk * num_kinds + static_cast<size_t>(kind)] / num_data_ranks;
    };
    measured.costs.forward.push_back(mean(pipeline::ActionKind::forward));
    measured.costs.backward_input.push_back(mean(pipeline::ActionKind::backward) +
                                            mean(pipeline::ActionKind::backward_input));
    measured.costs.backward_weight.push_back(mean(pipeline::ActionKind::backward_weight));
  }
  measured.busy_seconds = sums.back();
  return measured;
}

PipelineStats pipeline_stats(comm::Communicator& world, const pipeline::Schedule& schedule,
                             const pipeline::ExecutionReport& execution, int pp_rank, int num_chunks,
                             int num_data_ranks) {
  const MeasuredCosts measured = measured_costs(world, execution, pp_rank, num_chunks, num_data_ranks);
  Stream stream;
  double longest = execution.seconds;
  world.all_reduce(TensorView(&longest, DType::f64, {1}), comm::ReduceOp::max, stream).wait();
  const pipeline::Timeline timeline = pipeline::simulate(schedule, measured.costs);
  PipelineStats stats;
  stats.bubble_bound = timeline.bubble;
  if (longest > 0) {
    stats.bubble = 1 - measured.busy_seconds / (static_cast<double>(world.size()) * longest);
    stats.efficiency = timeline.makespan / longest;
  }
  return stats;
}

}  // namespace lamina
