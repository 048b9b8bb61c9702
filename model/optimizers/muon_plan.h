// Who orthogonalises which matrix, and what travels for it (distributed Muon, arXiv 2502.16982, algorithm 1, over the flat
// shards of ZeRO-1). A pure plan, the same on every rank of a data-parallel group.
//
// Every matrix has one owner in the group: costs are balanced, and among equal ones a rank gets what it holds already. The
// matrices are taken in rounds, which bounds the memory. How the optimizer uses it, on each rank:
//
//   const std::vector<MuonRankRound> rounds = muon_rank_rounds(plan, matrices, rank);   // once
//   for (const MuonRankRound& round : rounds) {
//     for (piece : round.sent) write elements [begin, end) of its matrix's update to message + piece.message_offset
//     comm.all_to_all_v(message, round.send_counts, received, round.receive_counts)
//     for (copy : round.received) received + copy.message_offset -> assembled + copy.assembled_offset
//     for (batch : round.batches) newton_schulz of assembled + batch.offset, as [count, rows, columns]
//     for (copy : round.received) assembled + copy.assembled_offset -> received + copy.message_offset
//     comm.all_to_all_v(received, round.receive_counts, message, round.send_counts)     // the same, in reverse
//     for (piece : round.sent) apply message + piece.message_offset to elements [begin, end) of its matrix
//   }
//
// `message` has room for max_sent(rounds) elements, `received` and `assembled` for max_received(rounds).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/zero/shard_map.h"

namespace lamina::model {

// Elements of a matrix that a rank of the group keeps.
struct MuonPart {
  int rank = 0;
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const MuonPart&) const = default;
};

struct MuonMatrix {
  std::string name;
  int64_t rows = 0, columns = 0;
  std::vector<MuonPart> parts;  // in order of elements, none empty, together the whole matrix
  int64_t num_elements() const { return rows * columns; }
};

// The parts of a parameter of a shard map. `parameters` as the map was made from.
std::vector<MuonPart> muon_parts(const zero::ShardMap& map, std::span<const zero::FlatParameter> parameters,
                                 int parameter);

// FLOPs of five Newton-Schulz iterations, with m the shorter side: 5 (4 m^2 n + 2 m^3).
int64_t newton_schulz_cost(int64_t rows, int64_t columns);

struct MuonPlan {
  struct Round {
    std::vector<std::vector<int>>
        matrices;  // [owner]: in the order in which they lie there; equal shapes are neighbours
  };

  int num_ranks = 1;
  // What a rank receives in a round stays within this, or is a single matrix. What it sends stays within this or within the
  // size of the largest matrix.
  int64_t max_elements = 0;
  std::vector<int> owner;     // [matrix]
  std::vector<int64_t> load;  // [rank]: sum of costs
  std::vector<Round> rounds;

  std::string to_string(std::span<const MuonMatrix> matrices) const;
};

MuonPlan make_muon_plan(std::span<const MuonMatrix> matrices, int num_ranks, int64_t max_elements);

// Throws InternalError unless every matrix is in exactly one round, at its owner, the loads are what they are said to be, and
// the bounds hold.
void validate(const MuonPlan& plan, std::span<const MuonMatrix> matrices);

// ---- what one rank does ----

struct MuonSend {  // one part of this rank
  int matrix = 0;
  int64_t begin = 0, end = 0;  // elements of the matrix
  int64_t message_offset = 0;  // elements
};
struct MuonReceive {
  int matrix = 0;
  int64_t message_offset = 0;    // elements
  int64_t assembled_offset = 0;  // where they lie once the matrices of the round are whole, one after another
  int64_t num_elements = 0;
};
struct MuonBatch {     // matrices of one shape, one after another
  int64_t offset = 0;  // in the assembled matrices
  int64_t count = 0, rows = 0, columns = 0;
};

struct MuonRankRound {
  // For all_to_all_v, elements [rank]. The messages to and from the rank itself are among them. Inside a message: in the
  // order of the owner's matrices, then of elements.
  std::vector<int64_t> send_counts, receive_counts;
  std::vector<MuonSend> sent;
  std::vector<MuonReceive> received;
  std::vector<MuonBatch> batches;
  int64_t num_sent = 0, num_received = 0;
};

std::vector<MuonRankRound> muon_rank_rounds(const MuonPlan& plan, std::span<const MuonMatrix> matrices, int rank);
int64_t max_sent(std::span<const MuonRankRound> rounds);
int64_t max_received(std::span<const MuonRankRound> rounds);

}  // namespace lamina::model
