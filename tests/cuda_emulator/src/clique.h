// Ranks that exchange: where their operations meet.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "nccl.h"

namespace lamina_emulator {

enum class Exchange { send, receive, broadcast, all_reduce, reduce_scatter, all_gather };

struct Operation {
  Exchange kind;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  size_t count = 0;
  ncclDataType_t type = ncclInt8;
  ncclRedOp_t reduction = ncclSum;
  int peer = 0;  // or root
  int rank = 0, device = 0;
  uint64_t index = 0;  // of a collective operation among those of its rank
  bool done = false;
};
using Operations = std::vector<std::shared_ptr<Operation>>;

size_t size_of(ncclDataType_t type);  // 0 for those that are not emulated
// Whether sums and the like of the type are emulated.
bool can_reduce(ncclDataType_t type, ncclRedOp_t reduction);

class Clique {
 public:
  explicit Clique(int num_ranks) : num_ranks_(num_ranks), gone_(static_cast<size_t>(num_ranks)) {}

  int num_ranks() const { return num_ranks_; }
  bool join(int rank);  // false when that rank has joined already
  bool complete();      // everybody has joined
  void wait_until_complete();
  // Returns when all have been done, or when `rank` has left.
  void run(int rank, const Operations& operations);
  void leave(int rank);  // its operations no longer wait
  bool somebody_left();

 private:
  void match(const std::shared_ptr<Operation>& operation);
  void transfer(Operation& send, Operation& receive);
  void collect(std::vector<std::shared_ptr<Operation>>& all);

  const int num_ranks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> gone_;
  std::map<int, bool> joined_;
  std::map<std::pair<int, int>, std::deque<std::shared_ptr<Operation>>> sends_, receives_;  // from, to
  std::map<uint64_t, std::vector<std::shared_ptr<Operation>>> collectives_;
};

}  // namespace lamina_emulator
