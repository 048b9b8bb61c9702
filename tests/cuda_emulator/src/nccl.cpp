#include "nccl.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "clique.h"
#include "device.h"
#include "memory.h"
#include "stream.h"

namespace lamina_emulator {
namespace {

// What a rank's operations share; they may outlive the communicator's handle.
struct Rank {
  std::shared_ptr<Clique> clique;
  int rank = 0, device = 0;
  std::mutex mutex;
  std::condition_variable changed;
  std::function<bool()> device_is_through;  // what it did when the communicator was begun
  uint64_t issued = 0, finished = 0;        // groups of operations: they run in the order of the calls

  bool is_connected() { return clique->complete() && device_is_through(); }
  void run(uint64_t ticket, const Operations& operations) {
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return finished == ticket; });
    }
    clique->run(rank, operations);
    const std::lock_guard lock(mutex);
    ++finished;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return finished == issued; });
  }
};

}  // namespace
}  // namespace lamina_emulator

struct ncclComm {
  std::shared_ptr<lamina_emulator::Rank> rank;
  bool blocking = true;
  bool in_progress = false;  // the last call has not been asked after
  uint64_t collectives = 0;
};

namespace lamina_emulator {
namespace {

struct Cliques {
  std::mutex mutex;
  std::map<std::string, std::weak_ptr<Clique>> forming;
};
Cliques& cliques() {
  static Cliques& all = *new Cliques;
  return all;
}

struct Group {
  struct Entry {
    ncclComm_t comm;
    cudaStream_t stream;
    std::shared_ptr<Operation> operation;
  };
  int depth = 0;
  std::vector<Entry> entries;
  std::vector<ncclComm_t> joining;
  ncclResult_t failure = ncclSuccess;
};
thread_local Group group;

// Runs what the group holds: for each communicator and stream one piece of work.
ncclResult_t issue() {
  Group now = std::move(group);
  group = {};
  if (now.failure != ncclSuccess) return now.failure;
  bool in_progress = false;
  for (const ncclComm_t comm : now.joining) {
    if (comm->blocking) comm->rank->clique->wait_until_complete();
    while (comm->blocking && !comm->rank->is_connected()) std::this_thread::sleep_for(std::chrono::microseconds(100));
    in_progress |= !comm->blocking;
  }
  while (!now.entries.empty()) {
    const ncclComm_t comm = now.entries.front().comm;
    const cudaStream_t stream = now.entries.front().stream;
    Operations operations;
    std::vector<Group::Entry> others;
    for (Group::Entry& entry : now.entries) {
      if (entry.comm == comm && entry.stream == stream) {
        operations.push_back(std::move(entry.operation));
      } else {
        others.push_back(std::move(entry));
      }
    }
    now.entries = std::move(others);
    uint64_t ticket = 0;
    {
      const std::lock_guard lock(comm->rank->mutex);
      ticket = comm->rank->issued++;
    }
    const cudaError_t status =
        enqueue(stream, Work::order,
                [rank = comm->rank, ticket, operations = std::move(operations)] { rank->run(ticket, operations); });
    if (status != cudaSuccess) {
      const std::lock_guard lock(comm->rank->mutex);
      --comm->rank->issued;
      return ncclUnhandledCudaError;
    }
    comm->in_progress = !comm->blocking;
    in_progress |= comm->in_progress;
  }
  return in_progress ? ncclInProgress : ncclSuccess;
}

bool usable_memory(const void* data, size_t num_bytes, int device) {
  if (num_bytes == 0) return true;
  return memory().device_of(data) == device ? memory().holds(data, num_bytes) : memory().is_pinned(data);
}

ncclResult_t checked(ncclComm_t comm, const Operation& operation, size_t bytes_read, size_t bytes_written) {
  if (comm == nullptr) return ncclInvalidArgument;
  const Rank& rank = *comm->rank;
  if (comm->in_progress || !comm->rank->is_connected()) return ncclInvalidArgument;  // ask ncclCommGetAsyncError first
  if (size_of(operation.type) == 0 || operation.peer < 0 || operation.peer >= rank.clique->num_ranks())
    return ncclInvalidArgument;
  if (!can_reduce(operation.type, operation.reduction)) return ncclInvalidArgument;
  if (!usable_memory(operation.from, bytes_read, rank.device) ||
      !usable_memory(operation.to, bytes_written, rank.device))
    return ncclInvalidArgument;
  return ncclSuccess;
}

ncclResult_t add(ncclComm_t comm, cudaStream_t stream, Operation operation, size_t bytes_read, size_t bytes_written) {
  const ncclResult_t status = checked(comm, operation, bytes_read, bytes_written);
  if (status != ncclSuccess) {
    if (group.depth > 0) group.failure = status;
    return status;
  }
  const bool collective = operation.kind != Exchange::send && operation.kind != Exchange::receive;
  if (collective && operation.count == 0) return ncclSuccess;
  operation.rank = comm->rank->rank;
  operation.device = comm->rank->device;
  if (collective) operation.index = comm->collectives++;
  group.entries.push_back({comm, stream, std::make_shared<Operation>(operation)});
  return group.depth > 0 ? ncclSuccess : issue();
}

Operation operation(Exchange kind, const void* from, void* to, size_t count, ncclDataType_t type, int peer = 0,
                    ncclRedOp_t reduction = ncclSum) {
  Operation result;
  result.kind = kind;
  result.from = static_cast<const std::byte*>(from);
  result.to = static_cast<std::byte*>(to);
  result.count = count;
  result.type = type;
  result.peer = peer;
  result.reduction = reduction;
  return result;
}

size_t num_ranks(ncclComm_t comm) {
  return comm == nullptr ? 0 : static_cast<size_t>(comm->rank->clique->num_ranks());
}

}  // namespace
}  // namespace lamina_emulator

using namespace lamina_emulator;

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* uniqueId) {
  static std::atomic<uint64_t> next{1};
  std::memset(uniqueId, 0, sizeof(*uniqueId));
  const uint64_t number = next++;
  std::memcpy(uniqueId->internal, &number, sizeof(number));
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int nranks, ncclUniqueId commId, int rank, ncclConfig_t* config) {
  const ncclConfig_t plain = NCCL_CONFIG_INITIALIZER;
  if (config != nullptr && config->magic != plain.magic) return ncclInvalidArgument;
  if (comm == nullptr || nranks < 1 || rank < 0 || rank >= nranks) return ncclInvalidArgument;
  if (usable() != cudaSuccess) return ncclUnhandledCudaError;
  std::shared_ptr<Clique> clique;
  {
    const std::lock_guard lock(cliques().mutex);
    auto& known = cliques().forming[std::string(commId.internal, sizeof(commId.internal))];
    clique = known.lock();
    if (!clique) known = clique = std::make_shared<Clique>(nranks);
  }
  if (clique->num_ranks() != nranks || !clique->join(rank)) return ncclInvalidUsage;
  *comm = new ncclComm;
  (*comm)->rank = std::make_shared<Rank>();
  (*comm)->rank->clique = clique;
  (*comm)->rank->rank = rank;
  (*comm)->rank->device = current_device();
  (*comm)->rank->device_is_through = all_streams_are_through(current_device());
  (*comm)->blocking = config == nullptr || config->blocking != 0;
  (*comm)->in_progress = !(*comm)->blocking;
  group.joining.push_back(*comm);
  return group.depth > 0 ? ncclSuccess : issue();
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int nranks, ncclUniqueId commId, int rank) {
  return ncclCommInitRankConfig(comm, nranks, commId, rank, nullptr);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  if (comm == nullptr) return ncclInvalidArgument;
  if (comm->blocking) {
    comm->rank->wait();
    return ncclSuccess;
  }
  comm->in_progress = true;
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  comm->rank->wait();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (comm == nullptr) return ncclSuccess;
  comm->rank->clique->leave(comm->rank->rank);
  comm->rank->wait();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* asyncError) {
  if (comm == nullptr || asyncError == nullptr) return ncclInvalidArgument;
  if (comm->rank->clique->somebody_left()) {
    *asyncError = ncclRemoteError;
  } else if (!comm->rank->is_connected() || comm->in_progress) {
    *asyncError = ncclInProgress;
    if (comm->rank->is_connected()) comm->in_progress = false;  // said once more, so that callers must be patient
  } else {
    *asyncError = ncclSuccess;
  }
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  if (comm == nullptr) return ncclInvalidArgument;
  *count = comm->rank->clique->num_ranks();
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int* device) {
  if (comm == nullptr) return ncclInvalidArgument;
  *device = comm->rank->device;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  if (comm == nullptr) return ncclInvalidArgument;
  *rank = comm->rank->rank;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  constexpr const char* texts[] = {"no error",
                                   "unhandled cuda error",
                                   "unhandled system error",
                                   "internal error",
                                   "invalid argument",
                                   "invalid usage",
                                   "remote process exited or there was a network error",
                                   "NCCL operation in progress"};
  return result >= ncclSuccess && result < ncclNumResults ? texts[result] : "unknown result code";
}
const char* ncclGetLastError(ncclComm_t) {
  return "";
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0) return ncclSuccess;
  return issue();
}

ncclResult_t ncclSend(const void* sendbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, operation(Exchange::send, sendbuff, nullptr, count, datatype, peer),
             count * size_of(datatype), 0);
}
ncclResult_t ncclRecv(void* recvbuff, size_t count, ncclDataType_t datatype, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm, stream, operation(Exchange::receive, nullptr, recvbuff, count, datatype, peer), 0,
             count * size_of(datatype));
}
ncclResult_t ncclBroadcast(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const bool sends = comm != nullptr && comm->rank->rank == root;
  return add(comm, stream, operation(Exchange::broadcast, sendbuff, recvbuff, count, datatype, root),
             sends ? count * size_of(datatype) : 0, count * size_of(datatype));
}
ncclResult_t ncclAllReduce(const void* sendbuff, void* recvbuff, size_t count, ncclDataType_t datatype, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t num_bytes = count * size_of(datatype);
  return add(comm, stream, operation(Exchange::all_reduce, sendbuff, recvbuff, count, datatype, 0, op), num_bytes,
             num_bytes);
}
ncclResult_t ncclReduceScatter(const void* sendbuff, void* recvbuff, size_t recvcount, ncclDataType_t datatype,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  const size_t part = recvcount * size_of(datatype);
  return add(comm, stream, operation(Exchange::reduce_scatter, sendbuff, recvbuff, recvcount, datatype, 0, op),
             part * num_ranks(comm), part);
}
ncclResult_t ncclAllGather(const void* sendbuff, void* recvbuff, size_t sendcount, ncclDataType_t datatype,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t part = sendcount * size_of(datatype);
  return add(comm, stream, operation(Exchange::all_gather, sendbuff, recvbuff, sendcount, datatype), part,
             part * num_ranks(comm));
}
