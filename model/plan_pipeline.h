// A step's schedule run for the plan: makespan and peaks. A step may have thousands of micro-batches, all alike but the first
// and the last ones: a few are simulated, and the rest follows exactly.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/pipeline/block_routes.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/simulate.h"

namespace lamina::model {

struct PipelineShape {
  ScheduleName schedule = ScheduleName::interleaved_1f1b;
  int num_ranks = 1;
  int64_t num_microbatches = 1;
  pipeline::ChunkCosts order_costs;  // what the schedule is made for
};

struct PipelineRun {
  double makespan = 0;
  std::vector<double> peak_microbatches;       // [chunk]
  std::vector<double> peak_summaries;          // [pp_rank]
  std::vector<double> peak_summary_gradients;  // [pp_rank], accumulators alive
};

// Schedules go in rounds of num_ranks micro-batches, and in the steady state every round adds the same to each figure. Taken
// for reached when three rounds in turn have done so (to 1e-9), after eight and two per virtual stage; until then the number
// simulated is doubled. Few micro-batches are all simulated.
PipelineRun run_pipeline(const PipelineShape& shape, const pipeline::ChunkCosts& costs,
                         const pipeline::BlockRoutes& routes);
// All micro-batches, one by one.
PipelineRun run_whole_pipeline(const PipelineShape& shape, const pipeline::ChunkCosts& costs,
                               const pipeline::BlockRoutes& routes);

// The most accumulators of summary gradients alive on each rank at one time: from the first backward that deposits to the end
// of the one of the chunk that brought or finished the summary.
std::vector<int> peak_summary_gradients(const pipeline::BlockRoutes& routes, const pipeline::Schedule& schedule);

}  // namespace lamina::model
