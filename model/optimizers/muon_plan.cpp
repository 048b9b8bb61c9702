#include "model/optimizers/muon_plan.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/base/error.h"

namespace lamina::model {

namespace {

void check_matrix(const MuonMatrix& matrix, int num_ranks) {
  LAMINA_CHECK(matrix.rows >= 1 && matrix.columns >= 1, "{} is [{}, {}]", matrix.name, matrix.rows, matrix.columns);
  int64_t end = 0;
  for (const MuonPart& part : matrix.parts) {
    LAMINA_CHECK(part.rank >= 0 && part.rank < num_ranks, "{}: a part of rank {} of {}", matrix.name, part.rank,
                 num_ranks);
    LAMINA_CHECK(part.begin == end && part.end > part.begin, "{}: a part [{}, {}) after element {}", matrix.name,
                 part.begin, part.end, end);
    end = part.end;
  }
  LAMINA_CHECK(end == matrix.num_elements(), "{}: parts of {} elements, the matrix has {}", matrix.name, end,
               matrix.num_elements());
}

int64_t cost_of(const MuonMatrix& matrix) {
  return newton_schulz_cost(matrix.rows, matrix.columns);
}

int64_t largest_of(std::span<const MuonMatrix> matrices) {
  int64_t largest = 0;
  for (const MuonMatrix& matrix : matrices) largest = std::max(largest, matrix.num_elements());
  return largest;
}

// Hands out matrices of one cost. A rank asks for the one of which it holds most.
class EqualMatrices {
 public:
  EqualMatrices(std::span<const MuonMatrix> matrices, std::span<const int> members, int num_ranks)
      : members_(members), held_(static_cast<size_t>(num_ranks)), taken_(matrices.size(), false) {
    for (int m : members) {
      std::vector<std::pair<int, int64_t>> holders;  // a rank may hold several parts
      for (const MuonPart& part : matrices[static_cast<size_t>(m)].parts) {
        const auto same = std::find_if(holders.begin(), holders.end(), [&](auto& h) { return h.first == part.rank; });
        if (same == holders.end()) {
          holders.emplace_back(part.rank, part.size());
        } else {
          same->second += part.size();
        }
      }
      for (const auto& [rank, elements] : holders) held_[static_cast<size_t>(rank)].list.push_back({elements, m});
    }
    for (Held& held : held_)
      std::stable_sort(held.list.begin(), held.list.end(),
                       [](const Candidate& a, const Candidate& b) { return a.elements > b.elements; });
  }

  struct Candidate {
    int64_t elements;
    int matrix;
  };
  // The rank's first choice among those that are left.
  Candidate best_for(size_t rank) {
    Held& held = held_[rank];
    while (held.next < held.list.size() && is_taken(held.list[held.next].matrix)) ++held.next;
    if (held.next < held.list.size()) return held.list[held.next];
    while (is_taken(members_[first_left_])) ++first_left_;
    return {0, members_[first_left_]};
  }
  void take(int matrix) { taken_[static_cast<size_t>(matrix)] = true; }

 private:
  struct Held {
    std::vector<Candidate> list;  // most elements first, then by matrix
    size_t next = 0;
  };
  bool is_taken(int matrix) const { return taken_[static_cast<size_t>(matrix)]; }

  std::span<const int> members_;
  std::vector<Held> held_;
  std::vector<bool> taken_;
  size_t first_left_ = 0;
};

// Longest first to the least loaded rank (Graham, 1969). Among equal costs and loads the pair of rank and matrix is taken of
// which most elements lie where they should; then the first matrix, then the first rank.
void choose_owners(MuonPlan& plan, std::span<const MuonMatrix> matrices) {
  std::vector<int> order(matrices.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<int64_t> cost;
  for (const MuonMatrix& matrix : matrices) cost.push_back(cost_of(matrix));
  const auto cost_at = [&](int m) { return cost[static_cast<size_t>(m)]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cost_at(a) > cost_at(b); });
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && cost_at(order[end]) == cost_at(order[begin])) ++end;
    EqualMatrices equal(matrices, std::span(order).subspan(begin, end - begin), plan.num_ranks);
    for (size_t i = begin; i < end; ++i) {
      const int64_t least = *std::min_element(plan.load.begin(), plan.load.end());
      size_t rank = plan.load.size();
      EqualMatrices::Candidate best{-1, 0};
      for (size_t r = 0; r < plan.load.size(); ++r) {
        if (plan.load[r] != least) continue;
        const EqualMatrices::Candidate candidate = equal.best_for(r);
        const bool better = std::tuple(-candidate.elements, candidate.matrix) < std::tuple(-best.elements, best.matrix);
        if (!better) continue;
        best = candidate;
        rank = r;
      }
      plan.owner[static_cast<size_t>(best.matrix)] = static_cast<int>(rank);
      plan.load[rank] += cost_at(best.matrix);
      equal.take(best.matrix);
    }
  }
}

// Elements that go to and fro in one round, [rank].
struct RoundTraffic {
  explicit RoundTraffic(int num_ranks)
      : sent(static_cast<size_t>(num_ranks), 0), received(static_cast<size_t>(num_ranks), 0) {}
  void add(const MuonMatrix& matrix, int owner) {
    received[static_cast<size_t>(owner)] += matrix.num_elements();
    for (const MuonPart& part : matrix.parts) sent[static_cast<size_t>(part.rank)] += part.size();
  }
  std::vector<int64_t> sent, received;
};

// The matrices of each owner in the order of its rounds: the most expensive first, so that all ranks have much to do at the
// same time, and equal shapes together.
std::vector<std::vector<int>> queues_of(const MuonPlan& plan, std::span<const MuonMatrix> matrices) {
  std::vector<std::vector<int>> queues(static_cast<size_t>(plan.num_ranks));
  for (size_t m = 0; m < matrices.size(); ++m)
    queues[static_cast<size_t>(plan.owner[m])].push_back(static_cast<int>(m));
  const auto key = [&](int m) {
    const MuonMatrix& matrix = matrices[static_cast<size_t>(m)];
    return std::tuple(-cost_of(matrix), matrix.rows, matrix.columns, m);
  };
  for (auto& queue : queues) std::sort(queue.begin(), queue.end(), [&](int a, int b) { return key(a) < key(b); });
  return queues;
}

// The owners take one matrix in turn until the next one of none fits.
void fill_rounds(MuonPlan& plan, std::span<const MuonMatrix> matrices) {
  const std::vector<std::vector<int>> queues = queues_of(plan, matrices);
  const int64_t max_sent = std::max(plan.max_elements, largest_of(matrices));
  std::vector<size_t> next(queues.size(), 0);
  for (size_t left = matrices.size(); left > 0;) {
    MuonPlan::Round round{std::vector<std::vector<int>>(queues.size())};
    RoundTraffic traffic(plan.num_ranks);
    const auto fits = [&](const MuonMatrix& matrix, size_t owner) {
      const int64_t before = traffic.received[owner];
      if (before > 0 && before + matrix.num_elements() > plan.max_elements) return false;
      // A rank may hold several parts, so the sums are taken before they are compared.
      RoundTraffic after = traffic;
      after.add(matrix, static_cast<int>(owner));
      return *std::max_element(after.sent.begin(), after.sent.end()) <= max_sent;
    };
    std::vector<bool> open(queues.size(), true);
    for (bool took = true; took;) {
      took = false;
      for (size_t owner = 0; owner < queues.size(); ++owner) {
        open[owner] = open[owner] && next[owner] < queues[owner].size() &&
                      fits(matrices[static_cast<size_t>(queues[owner][next[owner]])], owner);
        if (!open[owner]) continue;
        const int m = queues[owner][next[owner]++];
        traffic.add(matrices[static_cast<size_t>(m)], static_cast<int>(owner));
        round.matrices[owner].push_back(m);
        took = true;
        --left;
      }
    }
    plan.rounds.push_back(std::move(round));
  }
}

std::vector<MuonBatch> batches_of(std::span<const int> owned, std::span<const MuonMatrix> matrices) {
  std::vector<MuonBatch> batches;
  int64_t offset = 0;
  for (int m : owned) {
    const MuonMatrix& matrix = matrices[static_cast<size_t>(m)];
    const bool same =
        !batches.empty() && batches.back().rows == matrix.rows && batches.back().columns == matrix.columns;
    if (!same) batches.push_back({offset, 0, matrix.rows, matrix.columns});
    ++batches.back().count;
    offset += matrix.num_elements();
  }
  return batches;
}

MuonRankRound rank_round(const MuonPlan::Round& round, std::span<const MuonMatrix> matrices, int rank) {
  const size_t num_ranks = round.matrices.size();
  const std::vector<int>& owned = round.matrices[static_cast<size_t>(rank)];
  MuonRankRound out;
  out.send_counts.assign(num_ranks, 0);
  out.receive_counts.assign(num_ranks, 0);
  for (size_t owner = 0; owner < num_ranks; ++owner) {
    for (int m : round.matrices[owner]) {
      for (const MuonPart& part : matrices[static_cast<size_t>(m)].parts) {
        if (part.rank != rank) continue;
        out.sent.push_back({m, part.begin, part.end, out.num_sent});
        out.send_counts[owner] += part.size();
        out.num_sent += part.size();
      }
    }
  }
  for (int m : owned)
    for (const MuonPart& part : matrices[static_cast<size_t>(m)].parts)
      out.receive_counts[static_cast<size_t>(part.rank)] += part.size();
  std::vector<int64_t> next(num_ranks, 0);  // in the message of each rank
  for (size_t r = 1; r < num_ranks; ++r) next[r] = next[r - 1] + out.receive_counts[r - 1];
  for (int m : owned) {
    for (const MuonPart& part : matrices[static_cast<size_t>(m)].parts) {
      int64_t& offset = next[static_cast<size_t>(part.rank)];
      out.received.push_back({m, offset, out.num_received, part.size()});
      offset += part.size();
      out.num_received += part.size();
    }
  }
  out.batches = batches_of(owned, matrices);
  return out;
}

}  // namespace

std::vector<MuonPart> muon_parts(const zero::ShardMap& map, std::span<const zero::FlatParameter> parameters,
                                 int parameter) {
  LAMINA_CHECK(parameters.size() == map.offsets.size(), "{} parameters, {} in the map", parameters.size(),
               map.offsets.size());
  const int bucket = map.bucket_of(parameter);
  const int64_t offset = map.offsets[static_cast<size_t>(parameter)];
  const int64_t end = offset + parameters[static_cast<size_t>(parameter)].num_elements;
  std::vector<MuonPart> parts;
  for (int rank = 0; rank < map.dp_size; ++rank) {
    const zero::Interval owned = map.owned(bucket, rank);
    const MuonPart part{rank, std::max(owned.begin, offset) - offset, std::min(owned.end, end) - offset};
    if (part.size() > 0) parts.push_back(part);
  }
  return parts;
}

int64_t newton_schulz_cost(int64_t rows, int64_t columns) {
  const int64_t m = std::min(rows, columns), n = std::max(rows, columns);
  return 5 * (4 * m * m * n + 2 * m * m * m);
}

MuonPlan make_muon_plan(std::span<const MuonMatrix> matrices, int num_ranks, int64_t max_elements) {
  LAMINA_CHECK(num_ranks >= 1, "a group of {} ranks", num_ranks);
  LAMINA_CHECK(max_elements >= 1, "at most {} elements in a round", max_elements);
  for (const MuonMatrix& matrix : matrices) check_matrix(matrix, num_ranks);
  MuonPlan plan;
  plan.num_ranks = num_ranks;
  plan.max_elements = max_elements;
  plan.owner.assign(matrices.size(), 0);
  plan.load.assign(static_cast<size_t>(num_ranks), 0);
  choose_owners(plan, matrices);
  fill_rounds(plan, matrices);
  return plan;
}

void validate(const MuonPlan& plan, std::span<const MuonMatrix> matrices) {
  const auto ranks = static_cast<size_t>(plan.num_ranks);
  LAMINA_CHECK(plan.num_ranks >= 1 && plan.load.size() == ranks, "{} loads of {} ranks", plan.load.size(),
               plan.num_ranks);
  LAMINA_CHECK(plan.owner.size() == matrices.size(), "{} owners of {} matrices", plan.owner.size(), matrices.size());
  for (const MuonMatrix& matrix : matrices) check_matrix(matrix, plan.num_ranks);
  const int64_t bound = std::max(plan.max_elements, largest_of(matrices));
  std::vector<bool> seen(matrices.size(), false);
  std::vector<int64_t> load(ranks, 0);
  for (size_t i = 0; i < plan.rounds.size(); ++i) {
    const MuonPlan::Round& round = plan.rounds[i];
    LAMINA_CHECK(round.matrices.size() == ranks, "round {} of {} ranks, {} in the group", i, round.matrices.size(),
                 ranks);
    RoundTraffic traffic(plan.num_ranks);
    for (size_t r = 0; r < ranks; ++r) {
      for (int m : round.matrices[r]) {
        LAMINA_CHECK(m >= 0 && static_cast<size_t>(m) < matrices.size(), "round {}: matrix {} of {}", i, m,
                     matrices.size());
        const auto index = static_cast<size_t>(m);
        LAMINA_CHECK(plan.owner[index] == static_cast<int>(r), "round {}: {} is at rank {}, its owner is rank {}", i,
                     matrices[index].name, r, plan.owner[index]);
        LAMINA_CHECK(!seen[index], "round {}: {} a second time", i, matrices[index].name);
        seen[index] = true;
        load[r] += cost_of(matrices[index]);
        traffic.add(matrices[index], static_cast<int>(r));
      }
      LAMINA_CHECK(round.matrices[r].size() <= 1 || traffic.received[r] <= plan.max_elements,
                   "round {}: rank {} receives {} elements, at most {}", i, r, traffic.received[r], plan.max_elements);
    }
    for (size_t r = 0; r < ranks; ++r)
      LAMINA_CHECK(traffic.sent[r] <= bound, "round {}: rank {} sends {} elements, at most {}", i, r, traffic.sent[r],
                   bound);
  }
  for (size_t m = 0; m < matrices.size(); ++m) LAMINA_CHECK(seen[m], "{} is in no round", matrices[m].name);
  for (size_t r = 0; r < ranks; ++r)
    LAMINA_CHECK(load[r] == plan.load[r], "rank {} has a load of {}, said to be {}", r, load[r], plan.load[r]);
}

std::string MuonPlan::to_string(std::span<const MuonMatrix> matrices) const {
  int64_t elements = 0, travelling = 0;
  for (size_t m = 0; m < matrices.size(); ++m) {
    elements += matrices[m].num_elements();
    for (const MuonPart& part : matrices[m].parts)
      if (part.rank != owner[m]) travelling += part.size();
  }
  std::string text = fmt::format("{} matrices of {} elements on {} ranks in {} rounds; {} elements travel and return\n",
                                 matrices.size(), elements, num_ranks, rounds.size(), travelling);
  for (size_t r = 0; r < load.size(); ++r)
    text += fmt::format("rank {}  {} matrices, {:.3f} GFLOP\n", r, std::count(owner.begin(), owner.end(), r),
                        static_cast<double>(load[r]) / 1e9);
  for (size_t i = 0; i < rounds.size(); ++i) {
    text += fmt::format("round {}\n", i);
    RoundTraffic traffic(num_ranks);
    for (size_t r = 0; r < load.size(); ++r)
      for (int m : rounds[i].matrices[r]) traffic.add(matrices[static_cast<size_t>(m)], static_cast<int>(r));
    for (size_t r = 0; r < load.size(); ++r) {
      text += fmt::format("  rank {}  sends {}, receives {}\n", r, traffic.sent[r], traffic.received[r]);
      for (int m : rounds[i].matrices[r]) {
        const MuonMatrix& matrix = matrices[static_cast<size_t>(m)];
        std::string from;
        for (const MuonPart& part : matrix.parts) from += fmt::format("{}{}", from.empty() ? "" : ", ", part.rank);
        text += fmt::format("    [{}, {}]  {}  from {}\n", matrix.rows, matrix.columns, matrix.name, from);
      }
    }
  }
  return text;
}

std::vector<MuonRankRound> muon_rank_rounds(const MuonPlan& plan, std::span<const MuonMatrix> matrices, int rank) {
  LAMINA_CHECK(rank >= 0 && rank < plan.num_ranks, "rank {} of {}", rank, plan.num_ranks);
  LAMINA_CHECK(plan.owner.size() == matrices.size(), "{} owners of {} matrices", plan.owner.size(), matrices.size());
  std::vector<MuonRankRound> rounds;
  for (const MuonPlan::Round& round : plan.rounds) rounds.push_back(rank_round(round, matrices, rank));
  return rounds;
}

int64_t max_sent(std::span<const MuonRankRound> rounds) {
  int64_t most = 0;
  for (const MuonRankRound& round : rounds) most = std::max(most, round.num_sent);
  return most;
}

int64_t max_received(std::span<const MuonRankRound> rounds) {
  int64_t most = 0;
  for (const MuonRankRound& round : rounds) most = std::max(most, round.num_received);
  return most;
}

}  // namespace lamina::model
