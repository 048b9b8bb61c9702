// The time that a schedule takes, from the cost of each chunk: bubble, makespan, live activations. A pure function.
#pragma once

#include <string>
#include <vector>

#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

// Seconds (or any unit), per chunk. A hop costs its receiver's waiting time, not the sender's compute: transfers overlap.
// With one rank there are no hops, whatever their costs.
struct ChunkCosts {
  std::vector<double> forward;          // [num_chunks]
  std::vector<double> backward_input;   // [num_chunks]
  std::vector<double> backward_weight;  // [num_chunks]; B costs backward_input + backward_weight
  std::vector<double>
      hop_forward;  // [num_chunks - 1], from the end of the sender's action to the start of the receiver's; empty: 0
  std::vector<double> hop_backward;  // the same, for the hop c + 1 -> c at index c; empty: 0
};

struct Timeline {
  struct Span {
    double start = 0, end = 0;
  };
  std::vector<std::vector<Span>> spans;  // as the schedule: [pp_rank][time]
  double makespan = 0;                   // first start to last end over all ranks
  std::vector<double> busy;              // [pp_rank]
  // 1 - sum(busy) / (num_ranks * makespan): the share of rank time in which nothing is computed.
  double bubble = 0;
  // Most micro-batches in flight per chunk (between the start of F and the end of B or W; of F when there is no backward),
  // and the most over the chunks of a rank at one time, each weighted by activation_weight (see simulate()).
  std::vector<int> peak_microbatches;   // [num_chunks]
  std::vector<double> peak_activation;  // [pp_rank]
};

// activation_weight[c]: what one micro-batch in flight in chunk c holds (bytes, or empty: 1 each).
// The schedule must pass validate(). Linear time.
Timeline simulate(const Schedule& schedule, const ChunkCosts& costs, const std::vector<double>& activation_weight = {});

// A drawing: a line per rank, `width` columns of time, F, B, I, W where it computes (in the middle of the column) and '.'
// where it waits.
std::string to_text(const Schedule& schedule, const Timeline& timeline, int width = 100);

}  // namespace lamina::pipeline
