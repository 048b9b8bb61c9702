// The order in which a rank meets its chunks and micro-batches, shared by the schedules.
#pragma once

#include <vector>

#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

struct Visit {
  int local_chunk = 0, microbatch = 0;  // chunk = local_chunk * num_ranks + rank
};

// Micro-batches in groups of the given sizes: a group goes through all chunks of a rank, chunk by chunk, before the next one.
std::vector<Visit> forward_order(const std::vector<int>& groups, int chunks_per_rank);
std::vector<Visit> backward_order(const std::vector<int>& groups, int chunks_per_rank);  // the last chunk first

// As many groups as there can be of at least num_ranks micro-batches, as equal as possible, the larger ones first.
std::vector<int> even_groups(int num_ranks, int num_microbatches);

// Forwards that a rank runs before its first pair of forward and backward (arXiv 2104.04473 section 2.2).
int interleaved_warmup(int rank, int num_ranks, int chunks_per_rank, int largest_group);

// For these costs; null: every action takes the same time and hops none.
Schedule zero_bubble_schedule(int num_ranks, int chunks_per_rank, int num_microbatches, const ChunkCosts* costs);

}  // namespace lamina::pipeline
