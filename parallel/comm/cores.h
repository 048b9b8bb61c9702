// Which cores the ranks of a job may use, and how many each of them can count on.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "parallel/comm/communicator.h"

namespace lamina::comm {

// What a rank tells the others about its cores.
struct Cores {
  static constexpr int max_cores = 1024;
  std::array<int32_t, 2> machine{};            // hash of the host's name
  std::array<int32_t, max_cores / 32> mask{};  // empty when the system has more cores than this
  bool has(int core) const {
    return ((static_cast<uint32_t>(mask[static_cast<size_t>(core / 32)]) >> (core % 32)) & 1u) != 0;
  }
  int count() const {
    int cores = 0;
    for (int core = 0; core < max_cores; ++core) cores += has(core);
    return cores;
  }
};

// Of every rank. Collective.
std::vector<Cores> gather_cores(Communicator& comm);

// Each core counts as one over the number of ranks of this machine that may use it: right for ranks that share all
// cores, for ranks bound to cores of their own, and for anything between.
double share_of_cores(const std::vector<Cores>& all, int rank);

}  // namespace lamina::comm
