// How busy the pipeline's ranks were in a step, against what the schedule allows.
#pragma once

#include "parallel/comm/communicator.h"
#include "parallel/pipeline/executor.h"
#include "parallel/pipeline/schedule.h"
#include "parallel/pipeline/simulate.h"

namespace lamina {

struct PipelineStats {
  double bubble = 0;  // share of rank time in which nothing is computed, measured
  double bubble_bound =
      0;  // the same of the schedule, simulated with this step's measured time per chunk and free messages
  // Simulated makespan over the measured one: 1 when messages cost nothing and nobody waits longer than the schedule says.
  double efficiency = 1;
};

// Mean seconds per action of each chunk and kind, over the ranks that hold the chunk, and the ranks' sum of busy seconds.
struct MeasuredCosts {
  pipeline::ChunkCosts costs;  // hops are free
  double busy_seconds = 0;
};
// Collective over the world; the same on every rank. pp_rank: of this rank; num_data_ranks: pipelines side by side.
MeasuredCosts measured_costs(comm::Communicator& world, const pipeline::ExecutionReport& execution, int pp_rank,
                             int num_chunks, int num_data_ranks);

// Collective over the world; the same on every rank. pp_rank: of this rank; num_data_ranks: pipelines side by side.
PipelineStats pipeline_stats(comm::Communicator& world, const pipeline::Schedule& schedule,
                             const pipeline::ExecutionReport& execution, int pp_rank, int num_chunks,
                             int num_data_ranks);

}  // namespace lamina
