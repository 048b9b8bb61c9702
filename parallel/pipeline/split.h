// How many decoder layers each chunk gets.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lamina::pipeline {

// Time of one micro-batch, forward and backward together, in any unit.
struct LayerCosts {
  std::vector<double> layer;  // [num_layers]
  double embedding = 0;       // on the first chunk
  double head = 0;            // on the last chunk: output read, final norm, projection and loss
};

// Contiguous parts of the layers, [num_ranks * chunks_per_rank] counts in chunk order, chunk c on rank c mod num_ranks.
// Least largest rank total (the steady state's pace), then least largest chunk (the bubble); every chunk but the first and
// the last has at least one layer. Throws Error when there are too few layers.
//
// With several chunks per rank this is as hard as packing bins, so the proof that nothing is better is cut off after a fixed
// number of steps (some tenths of a second), not of seconds: the result depends on the arguments alone. It is the optimum for
// layers of equal cost, for one chunk per rank or one rank, and wherever the search ends; otherwise the best split found, which can be
// judged by balance_of(). Among equals (1e-9) the split that the search meets first.
std::vector<int64_t> balanced_split(const LayerCosts& costs, int num_ranks, int chunks_per_rank);

// Cost of each rank and the largest one over the mean.
struct SplitBalance {
  std::vector<double> rank_cost;
  double imbalance = 1;  // largest / mean
};
SplitBalance balance_of(const LayerCosts& costs, std::span<const int64_t> split, int num_ranks);

}  // namespace lamina::pipeline
