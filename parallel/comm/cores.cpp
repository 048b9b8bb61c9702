#include "parallel/comm/cores.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <thread>

#include "core/base/hash.h"
#include "core/base/here.h"

namespace lamina::comm {
namespace {

constexpr int64_t cores_words = 2 + Cores::max_cores / 32;
static_assert(sizeof(Cores) == cores_words * sizeof(int32_t));

Cores my_cores() {
  Cores cores;
  const uint64_t hash = hash64(host_name());
  cores.machine = {static_cast<int32_t>(hash & 0xffffffffu), static_cast<int32_t>(hash >> 32)};
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < std::min<int>(Cores::max_cores, CPU_SETSIZE); ++core) {
    if (!CPU_ISSET(core, &set)) continue;
    int32_t& word = cores.mask[static_cast<size_t>(core / 32)];
    word = static_cast<int32_t>(static_cast<uint32_t>(word) | (1u << (core % 32)));
  }
  return cores;
}

}  // namespace

std::vector<Cores> gather_cores(Communicator& comm) {
  Cores mine = my_cores();
  std::vector<Cores> all(static_cast<size_t>(comm.size()));
  Stream stream;
  comm.all_gather(TensorView(&mine, DType::i32, {cores_words}),
                  TensorView(all.data(), DType::i32, {comm.size(), cores_words}), stream)
      .wait();
  return all;
}

double share_of_cores(const std::vector<Cores>& all, int rank) {
  const Cores& mine = all[static_cast<size_t>(rank)];
  double share = 0;
  for (int core = 0; core < Cores::max_cores; ++core) {
    if (!mine.has(core)) continue;
    int users = 0;
    for (const Cores& other : all) users += other.machine == mine.machine && other.has(core);
    share += 1.0 / users;
  }
  if (share == 0) {  // more cores than a mask holds, or no affinity on this system
    int local = 0;
    for (const Cores& other : all) local += other.machine == mine.machine;
    share = static_cast<double>(std::thread::hardware_concurrency()) / local;
  }
  return share;
}

}  // namespace lamina::comm
