// The collectives as state machines over transfers. Private to parallel/comm.
//
// Whatever the algorithm, a sum is ((x0 + x1) + x2) + ... over the ranks, so the result depends neither on the size of
// the message nor on the transport.
#pragma once

#include "parallel/comm/p2p.h"
#include "parallel/comm/reduce.h"

namespace lamina::comm {

// Direct exchanges beat trees while a group is small.
constexpr int max_direct_ranks = 16;
// All parts of a tree-gathered all_reduce meet on rank 0; above this many bytes the direct exchange is cheaper.
constexpr int64_t max_tree_gather_bytes = 1 << 20;

// A binomial tree over 0..size-1 with root 0, whose sub-trees are ranges: that of r is [r, r + span).
struct BinomialNode {
  int parent;  // -1 for the root
  int span;
  std::vector<int> children;  // largest sub-tree first
};
BinomialNode binomial_node(int r, int size);

class PointToPoint final : public Operation {
 public:
  PointToPoint(P2PCommunicator& comm, bool is_send, TensorView view, int peer, int tag);

 private:
  bool advance() override;

  bool is_send_;
  TensorView view_;
  int peer_;
  bool started_ = false;
};

// Each part of `in` goes to its rank; the own part and the received ones are reduced into `out`.
class ReduceScatter final : public Operation {
 public:
  ReduceScatter(P2PCommunicator& comm, TensorView in, TensorView out, ReduceOp op);

 private:
  bool advance() override;

  TensorView in_, out_;
  ReduceOp op_;
  int phase_ = 0;
  uint8_t* received_ = nullptr;
};

// Of each rank, which elements of a view; parts may overlap.
struct Parts {
  std::vector<int64_t> begin, count;

  static Parts same(int64_t elements, int size);   // all of it for everyone
  static Parts equal(int64_t elements, int size);  // consecutive
  static Parts consecutive(std::span<const int64_t> counts);
};

// all_gather (everyone gets the same part), all_to_all and all_to_all_v (everyone gets another part).
class Exchange final : public Operation {
 public:
  Exchange(P2PCommunicator& comm, const char* name, TensorView in, Parts sent, TensorView out, Parts received);

 private:
  bool advance() override;

  TensorView in_, out_;
  Parts sent_, received_;
  bool started_ = false;
};

// Binomial tree from the root.
class Broadcast final : public Operation {
 public:
  Broadcast(P2PCommunicator& comm, TensorView inout, int root);

 private:
  bool advance() override;

  TensorView inout_;
  int root_;
  int phase_ = 0;
};

// Small: everyone sends everything to everyone and reduces by itself.
class AllReduceDirect final : public Operation {
 public:
  AllReduceDirect(P2PCommunicator& comm, const char* name, TensorView inout, ReduceOp op);

 private:
  bool advance() override;

  TensorView inout_;
  ReduceOp op_;
  bool started_ = false;
  uint8_t* received_ = nullptr;
};

// Small, many ranks: a binomial tree gathers to rank 0, which reduces in rank order; the tree carries the result back.
class AllReduceTree final : public Operation {
 public:
  AllReduceTree(P2PCommunicator& comm, const char* name, TensorView inout, ReduceOp op);

 private:
  bool advance() override;

  TensorView inout_;
  ReduceOp op_;
  int phase_ = 0;
  uint8_t* gathered_ = nullptr;  // of the ranks of this rank's sub-tree, in order
};

// Large: reduce_scatter of nearly equal parts, then all_gather.
class AllReduceScattered final : public Operation {
 public:
  AllReduceScattered(P2PCommunicator& comm, const char* name, TensorView inout, ReduceOp op);

 private:
  bool advance() override;
  int64_t begin_of(int part) const { return inout_.num_elements() * part / size(); }

  TensorView inout_;
  ReduceOp op_;
  int phase_ = 0;
  uint8_t* received_ = nullptr;
};

}  // namespace lamina::comm
