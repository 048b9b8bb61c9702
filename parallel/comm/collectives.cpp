#include "parallel/comm/collectives.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace lamina::comm {

namespace {

uint8_t* at(const TensorView& view, int64_t element) {
  return static_cast<uint8_t*>(view.data) + element * size_of(view.dtype);
}

void copy(void* to, const void* from, int64_t num_bytes) {
  if (num_bytes > 0 && to != from) std::memmove(to, from, static_cast<size_t>(num_bytes));
}

// The others, nearest first and each at a different distance on every rank, so that no rank is everybody's first target.
int peer_after(int rank, int distance, int size) {
  return (rank + distance) % size;
}
int peer_before(int rank, int distance, int size) {
  return (rank - distance + size) % size;
}

// Where rank's part lies when the parts of all ranks but `self` are packed one after another.
uint8_t* packed(uint8_t* base, int rank, int self, int64_t part_bytes) {
  return base + part_bytes * (rank < self ? rank : rank - 1);
}

// Reduces the own part with those packed in `received`, in rank order.
void reduce_received(ReduceOp op, DType dtype, const void* own, uint8_t* received, void* out, int64_t count, int self,
                     int size) {
  std::vector<const void*> sources(static_cast<size_t>(size));
  for (int r = 0; r < size; ++r)
    sources[static_cast<size_t>(r)] = r == self ? own : packed(received, r, self, count * size_of(dtype));
  reduce_in_order(op, dtype, sources, out, count);
}

}  // namespace

BinomialNode binomial_node(int r, int size) {
  const int reach = r == 0 ? static_cast<int>(std::bit_ceil(static_cast<unsigned>(size))) : (r & -r);
  BinomialNode node{r == 0 ? -1 : r - reach, std::min(reach, size - r), {}};
  for (int step = reach / 2; step >= 1; step /= 2)
    if (r + step < size) node.children.push_back(r + step);
  return node;
}

PointToPoint::PointToPoint(P2PCommunicator& comm, bool is_send, TensorView view, int peer, int tag)
    : Operation(comm, is_send ? "send" : "recv", view.num_bytes()), is_send_(is_send), view_(view), peer_(peer) {
  user_tag_ = tag;
}

bool PointToPoint::advance() {
  if (started_) return true;
  started_ = true;
  if (is_send_) {
    send(view_.data, view_.num_bytes(), peer_);
  } else {
    recv(view_.data, view_.num_bytes(), peer_);
  }
  return false;
}

ReduceScatter::ReduceScatter(P2PCommunicator& comm, TensorView in, TensorView out, ReduceOp op)
    : Operation(comm, "reduce_scatter", in.num_bytes()), in_(in), out_(out), op_(op) {}

bool ReduceScatter::advance() {
  const int64_t count = out_.num_elements();
  const int64_t part_bytes = out_.num_bytes();
  if (phase_++ == 0) {
    if (size() > 1) received_ = scratch(part_bytes * (size() - 1));
    for (int d = 1; d < size(); ++d) {
      const int source = peer_before(rank(), d, size());
      recv(packed(received_, source, rank(), part_bytes), part_bytes, source);
    }
    for (int d = 1; d < size(); ++d) {
      const int peer = peer_after(rank(), d, size());
      send(at(in_, count * peer), part_bytes, peer);
    }
    return false;
  }
  reduce_received(op_, in_.dtype, at(in_, count * rank()), received_, out_.data, count, rank(), size());
  return true;
}

Parts Parts::same(int64_t elements, int size) {
  const auto ranks = static_cast<size_t>(size);
  return {std::vector<int64_t>(ranks, 0), std::vector<int64_t>(ranks, elements)};
}

Parts Parts::equal(int64_t elements, int size) {
  return consecutive(std::vector<int64_t>(static_cast<size_t>(size), elements / size));
}

Parts Parts::consecutive(std::span<const int64_t> counts) {
  Parts parts{{}, {counts.begin(), counts.end()}};
  int64_t begin = 0;
  for (int64_t count : counts) {
    parts.begin.push_back(begin);
    begin += count;
  }
  return parts;
}

Exchange::Exchange(P2PCommunicator& comm, const char* name, TensorView in, Parts sent, TensorView out, Parts received)
    : Operation(comm, name, out.num_bytes()),
      in_(in),
      out_(out),
      sent_(std::move(sent)),
      received_(std::move(received)) {}

bool Exchange::advance() {
  if (started_) return true;
  started_ = true;
  const auto bytes_of = [&](const Parts& parts, int peer) {
    return parts.count[static_cast<size_t>(peer)] * size_of(out_.dtype);
  };
  const auto part_of = [](const TensorView& view, const Parts& parts, int peer) {
    return at(view, parts.begin[static_cast<size_t>(peer)]);
  };
  copy(part_of(out_, received_, rank()), part_of(in_, sent_, rank()), bytes_of(sent_, rank()));
  for (int d = 1; d < size(); ++d) {
    const int source = peer_before(rank(), d, size());
    recv(part_of(out_, received_, source), bytes_of(received_, source), source);
  }
  for (int d = 1; d < size(); ++d) {
    const int peer = peer_after(rank(), d, size());
    send(part_of(in_, sent_, peer), bytes_of(sent_, peer), peer);
  }
  return false;
}

Broadcast::Broadcast(P2PCommunicator& comm, TensorView inout, int root)
    : Operation(comm, "broadcast", inout.num_bytes()), inout_(inout), root_(root) {}

bool Broadcast::advance() {
  const BinomialNode node = binomial_node((rank() - root_ + size()) % size(), size());
  const auto group_rank = [&](int relative) { return (relative + root_) % size(); };
  switch (phase_++) {
    case 0:
      if (node.parent >= 0) recv(inout_.data, inout_.num_bytes(), group_rank(node.parent));
      return false;
    case 1:
      for (int child : node.children) send(inout_.data, inout_.num_bytes(), group_rank(child));
      return false;
    default:
      return true;
  }
}

AllReduceDirect::AllReduceDirect(P2PCommunicator& comm, const char* name, TensorView inout, ReduceOp op)
    : Operation(comm, name, inout.num_bytes()), inout_(inout), op_(op) {}

bool AllReduceDirect::advance() {
  const int64_t num_bytes = inout_.num_bytes();
  if (!started_) {
    started_ = true;
    received_ = scratch(num_bytes * (size() - 1));
    for (int d = 1; d < size(); ++d) {
      const int source = peer_before(rank(), d, size());
      recv(packed(received_, source, rank(), num_bytes), num_bytes, source);
    }
    for (int d = 1; d < size(); ++d) send(inout_.data, num_bytes, peer_after(rank(), d, size()));
    return false;
  }
  reduce_received(op_, inout_.dtype, inout_.data, received_, inout_.data, inout_.num_elements(), rank(), size());
  return true;
}

AllReduceTree::AllReduceTree(P2PCommunicator& comm, const char* name, TensorView inout, ReduceOp op)
    : Operation(comm, name, inout.num_bytes()), inout_(inout), op_(op) {}

bool AllReduceTree::advance() {
  const BinomialNode node = binomial_node(rank(), size());
  const int64_t num_bytes = inout_.num_bytes();
  switch (phase_++) {
    case 0:
      gathered_ = scratch(num_bytes * node.span);
      copy(gathered_, inout_.data, num_bytes);
      for (int child : node.children) {
        const int span = binomial_node(child, size()).span;
        recv(gathered_ + num_bytes * (child - rank()), num_bytes * span, child);
      }
      return false;
    case 1:
      if (node.parent >= 0) {
        send(gathered_, num_bytes * node.span, node.parent);
        recv(inout_.data, num_bytes, node.parent);
      } else {
        std::vector<const void*> sources(static_cast<size_t>(size()));
        for (int r = 0; r < size(); ++r) sources[static_cast<size_t>(r)] = gathered_ + num_bytes * r;
        reduce_in_order(op_, inout_.dtype, sources, inout_.data, inout_.num_elements());
      }
      return false;
    case 2:
      for (int child : node.children) send(inout_.data, num_bytes, child);
      return false;
    default:
      return true;
  }
}

AllReduceScattered::AllReduceScattered(P2PCommunicator& comm, const char* name, TensorView inout, ReduceOp op)
    : Operation(comm, name, inout.num_bytes()), inout_(inout), op_(op) {}

bool AllReduceScattered::advance() {
  const int64_t element = size_of(inout_.dtype);
  const auto bytes_of = [&](int part) { return (begin_of(part + 1) - begin_of(part)) * element; };
  const int64_t own_bytes = bytes_of(rank());
  switch (phase_++) {
    case 0:
      received_ = scratch(own_bytes * (size() - 1));
      for (int d = 1; d < size(); ++d) {
        const int source = peer_before(rank(), d, size());
        recv(packed(received_, source, rank(), own_bytes), own_bytes, source);
      }
      for (int d = 1; d < size(); ++d) {
        const int peer = peer_after(rank(), d, size());
        send(at(inout_, begin_of(peer)), bytes_of(peer), peer);
      }
      return false;
    case 1: {
      // The sends are done: the parts of the others may be overwritten with their results.
      uint8_t* const own = at(inout_, begin_of(rank()));
      reduce_received(op_, inout_.dtype, own, received_, own, own_bytes / element, rank(), size());
      for (int d = 1; d < size(); ++d) {
        const int source = peer_before(rank(), d, size());
        recv(at(inout_, begin_of(source)), bytes_of(source), source);
      }
      for (int d = 1; d < size(); ++d) send(own, own_bytes, peer_after(rank(), d, size()));
      return false;
    }
    default:
      return true;
  }
}

}  // namespace lamina::comm
