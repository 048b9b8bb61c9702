// Where the ranks of a job run: the first thing one asks when a job is slow, or when a machine has failed.
#pragma once

#include <string>
#include <vector>

#include "launch/process.h"

namespace lamina {

// Lines for people: "rank 3: node-b, cores 4-7, 4 threads, GPU 1", one per rank; of many ranks those of a host together,
// "ranks 0-7: node-b, cores 0-63". `places` are the ranks', "host\ncores\nthe rest".
std::vector<std::string> rank_map_lines(const std::vector<std::string>& places, int max_lines = 64);

// Logs the map of several ranks, and what started this process again (mpirun.sh --restart, or Slurm). Collective.
void log_rank_map(World& world);

}  // namespace lamina
