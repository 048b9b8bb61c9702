#include "clique.h"

#include <algorithm>
#include <cstring>

#include "errors.h"
#include "memory.h"

namespace lamina_emulator {
namespace {

class OpenedFor {  // the memory of everybody who takes part
 public:
  explicit OpenedFor(const std::vector<std::shared_ptr<Operation>>& all) {
    for (const auto& one : all) opened_.push_back(std::make_unique<Opened>(one->device));
  }

 private:
  std::vector<std::unique_ptr<Opened>> opened_;
};

template <class T>
T reduce_two(T a, T b, ncclRedOp_t reduction) {
  switch (reduction) {
    case ncclMax:
      return a < b ? b : a;
    case ncclMin:
      return b < a ? b : a;
    case ncclProd:
      return static_cast<T>(a * b);
    default:
      return static_cast<T>(a + b);
  }
}

template <class T>
void reduce_as(std::vector<std::byte>& total, const std::vector<std::byte>& more, ncclRedOp_t reduction) {
  for (size_t at = 0; at < total.size(); at += sizeof(T)) {
    T a, b;
    std::memcpy(&a, &total[at], sizeof(T));
    std::memcpy(&b, &more[at], sizeof(T));
    a = reduce_two(a, b, reduction);
    std::memcpy(&total[at], &a, sizeof(T));
  }
}

void reduce(std::vector<std::byte>& total, const std::vector<std::byte>& more, ncclDataType_t type,
            ncclRedOp_t reduction) {
  switch (type) {
    case ncclInt8:
      return reduce_as<int8_t>(total, more, reduction);
    case ncclUint8:
      return reduce_as<uint8_t>(total, more, reduction);
    case ncclInt32:
      return reduce_as<int32_t>(total, more, reduction);
    case ncclUint32:
      return reduce_as<uint32_t>(total, more, reduction);
    case ncclInt64:
      return reduce_as<int64_t>(total, more, reduction);
    case ncclUint64:
      return reduce_as<uint64_t>(total, more, reduction);
    case ncclFloat64:
      return reduce_as<double>(total, more, reduction);
    case ncclBfloat16:
      return reduce_as<__nv_bfloat16>(total, more, reduction);
    default:
      return reduce_as<float>(total, more, reduction);
  }
}

const char* name_of(Exchange kind) {
  switch (kind) {
    case Exchange::send:
      return "ncclSend";
    case Exchange::receive:
      return "ncclRecv";
    case Exchange::broadcast:
      return "ncclBroadcast";
    case Exchange::all_reduce:
      return "ncclAllReduce";
    case Exchange::reduce_scatter:
      return "ncclReduceScatter";
    case Exchange::all_gather:
      return "ncclAllGather";
  }
  return "";
}

std::string text_of(const Operation& operation) {
  std::string text = "rank " + std::to_string(operation.rank) + " is in " + name_of(operation.kind) + " of " +
                     std::to_string(operation.count * size_of(operation.type)) + " bytes";
  if (operation.kind == Exchange::broadcast) text += " from rank " + std::to_string(operation.peer);
  return text;
}

// The hardware would hang or mix up memory.
void disagree(const Operation& a, const Operation& b) {
  for (const int device : {a.device, b.device})
    set_device_error(device, cudaErrorLaunchFailure, "NCCL: " + text_of(a) + ", but " + text_of(b));
}

std::vector<std::byte> bytes(const std::byte* from, size_t count) {
  return {from, from + count};
}

}  // namespace

size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8:
    case ncclUint8:
      return 1;
    case ncclBfloat16:
    case ncclFloat16:
      return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
      return 8;
  }
  return 0;
}

bool can_reduce(ncclDataType_t type, ncclRedOp_t reduction) {
  return type != ncclFloat16 && reduction >= ncclSum && reduction <= ncclMin;
}

bool Clique::join(int rank) {
  const std::lock_guard lock(mutex_);
  if (!joined_.emplace(rank, true).second) return false;
  changed_.notify_all();
  return true;
}

bool Clique::complete() {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(joined_.size()) == num_ranks_;
}

void Clique::wait_until_complete() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return static_cast<int>(joined_.size()) == num_ranks_; });
}

void Clique::leave(int rank) {
  const std::lock_guard lock(mutex_);
  gone_[static_cast<size_t>(rank)] = true;
  changed_.notify_all();
}

bool Clique::somebody_left() {
  const std::lock_guard lock(mutex_);
  return std::find(gone_.begin(), gone_.end(), true) != gone_.end();
}

void Clique::run(int rank, const Operations& operations) {
  std::unique_lock lock(mutex_);
  const auto gone = [&] { return bool{gone_[static_cast<size_t>(rank)]}; };
  if (gone()) return;
  for (const auto& operation : operations) match(operation);
  changed_.notify_all();
  changed_.wait(lock, [&] {
    return gone() || std::all_of(operations.begin(), operations.end(), [](const auto& one) { return one->done; });
  });
  if (!gone()) return;
  // Nobody may write into the memory of who has left.
  const auto forget = [&](auto& queues) {
    for (auto& [ends, queue] : queues)
      queue.erase(std::remove_if(queue.begin(), queue.end(), [&](const auto& one) { return one->rank == rank; }),
                  queue.end());
  };
  forget(sends_);
  forget(receives_);
  for (auto& [index, all] : collectives_)
    for (auto& one : all)
      if (one && one->rank == rank) one = nullptr;
}

void Clique::match(const std::shared_ptr<Operation>& operation) {
  if (operation->kind == Exchange::send || operation->kind == Exchange::receive) {
    const bool sends = operation->kind == Exchange::send;
    const std::pair<int, int> ends =
        sends ? std::pair{operation->rank, operation->peer} : std::pair{operation->peer, operation->rank};
    (sends ? sends_ : receives_)[ends].push_back(operation);
    auto &from = sends_[ends], &to = receives_[ends];
    if (from.empty() || to.empty()) return;
    transfer(*from.front(), *to.front());
    from.pop_front();
    to.pop_front();
    return;
  }
  auto& all = collectives_[operation->index];
  all.resize(static_cast<size_t>(num_ranks_));
  all[static_cast<size_t>(operation->rank)] = operation;
  if (std::find(all.begin(), all.end(), nullptr) != all.end()) return;
  collect(all);
  collectives_.erase(operation->index);
}

void Clique::transfer(Operation& send, Operation& receive) {
  send.done = receive.done = true;
  const size_t num_bytes = send.count * size_of(send.type);
  if (num_bytes != receive.count * size_of(receive.type)) return disagree(send, receive);
  const Opened sender(send.device), receiver(receive.device);
  if (num_bytes > 0) std::memmove(receive.to, send.from, num_bytes);
}

void Clique::collect(std::vector<std::shared_ptr<Operation>>& all) {
  for (const auto& one : all) one->done = true;
  const Operation& first = *all.front();
  for (const auto& one : all)
    if (one->kind != first.kind || one->count != first.count || one->type != first.type ||
        one->reduction != first.reduction || one->peer != first.peer)
      return disagree(first, *one);
  const OpenedFor opened(all);
  const size_t part = first.count * size_of(first.type);
  std::vector<std::byte> total;
  switch (first.kind) {
    case Exchange::broadcast:
      total = bytes(all[static_cast<size_t>(first.peer)]->from, part);
      break;
    case Exchange::all_gather:
      for (const auto& one : all) total.insert(total.end(), one->from, one->from + part);
      break;
    default: {
      const size_t num_bytes = first.kind == Exchange::reduce_scatter ? part * all.size() : part;
      total = bytes(first.from, num_bytes);
      for (size_t i = 1; i < all.size(); ++i)
        reduce(total, bytes(all[i]->from, num_bytes), first.type, first.reduction);
    }
  }
  for (const auto& one : all) {
    const size_t offset = first.kind == Exchange::reduce_scatter ? static_cast<size_t>(one->rank) * part : 0;
    std::memcpy(one->to, total.data() + offset, first.kind == Exchange::reduce_scatter ? part : total.size());
  }
}

}  // namespace lamina_emulator
