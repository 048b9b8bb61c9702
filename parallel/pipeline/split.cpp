#include "parallel/pipeline/split.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "core/base/error.h"

namespace lamina::pipeline {

namespace {

using Split = std::vector<int64_t>;
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double slack = 1e-9;  // relative; totals that differ by less are equal

struct Problem {
  std::vector<double> prefix;  // cost of the layers before
  std::vector<double> extra;   // [chunk]: embedding and head
  int num_ranks = 1;
  double least_layer = 0;
  double equal_layer = 0;  // the cost of every layer when all are equal, else 0

  int num_layers() const { return static_cast<int>(prefix.size()) - 1; }
  int num_chunks() const { return static_cast<int>(extra.size()); }
  int rank_of(int chunk) const { return chunk % num_ranks; }
  double cost(int begin, int end) const {
    return prefix[static_cast<size_t>(end)] - prefix[static_cast<size_t>(begin)];
  }
  int least_layers(int chunk) const { return chunk == 0 || chunk + 1 == num_chunks() ? 0 : 1; }
};

struct Quality {
  double rank = 0, chunk = 0;                  // the largest of each
  double rank_squares = 0, chunk_squares = 0;  // how far the rest is from even; guides the descent only
};

Quality quality_of(const Problem& problem, const Split& split) {
  Quality quality;
  std::vector<double> total(static_cast<size_t>(problem.num_ranks), 0.0);
  int begin = 0;
  for (int c = 0; c < problem.num_chunks(); ++c) {
    const int end = begin + static_cast<int>(split[static_cast<size_t>(c)]);
    const double cost = problem.cost(begin, end) + problem.extra[static_cast<size_t>(c)];
    total[static_cast<size_t>(problem.rank_of(c))] += cost;
    quality.chunk = std::max(quality.chunk, cost);
    quality.chunk_squares += cost * cost;
    begin = end;
  }
  for (const double cost : total) {
    quality.rank = std::max(quality.rank, cost);
    quality.rank_squares += cost * cost;
  }
  return quality;
}

// Compares in turn; differences within the slack are ties.
bool is_less(std::initializer_list<std::pair<double, double>> pairs) {
  for (const auto& [a, b] : pairs) {
    if (a < b * (1 - slack)) return true;
    if (a > b * (1 + slack)) return false;
  }
  return false;
}

// Takes a layer from one chunk and gives one to another, shifting what lies between, while that helps. First the ranks, then
// the chunks.
Split descend(const Problem& problem, Split split) {
  const auto num_chunks = static_cast<size_t>(problem.num_chunks());
  for (const bool ranks_only : {true, false}) {
    Quality best = quality_of(problem, split);
    const auto is_better = [&](const Quality& q) {
      if (ranks_only) return is_less({{q.rank, best.rank}, {q.rank_squares, best.rank_squares}});
      return is_less({{q.rank, best.rank}, {q.chunk, best.chunk}, {q.chunk_squares, best.chunk_squares}});
    };
    for (bool moved = true; moved;) {
      moved = false;
      std::pair<size_t, size_t> move;
      for (size_t from = 0; from < num_chunks; ++from) {
        if (split[from] <= problem.least_layers(static_cast<int>(from))) continue;
        for (size_t to = 0; to < num_chunks; ++to) {
          if (to == from) continue;
          --split[from], ++split[to];
          const Quality quality = quality_of(problem, split);
          ++split[from], --split[to];
          if (!is_better(quality)) continue;
          best = quality;
          move = {from, to};
          moved = true;
        }
      }
      if (moved) --split[move.first], ++split[move.second];
    }
  }
  return split;
}

// Depth first over the chunks: is there a split with no rank total and no chunk above the limits?
class Search {
 public:
  Search(const Problem& problem, double rank_limit, double chunk_limit, int64_t& budget)
      : problem_(problem),
        budget_(budget),
        num_chunks_(problem.num_chunks()),
        room_(static_cast<size_t>(problem.num_ranks), rank_limit) {
    for (int c = 0; c < num_chunks_; ++c) {
      const double extra = problem.extra[static_cast<size_t>(c)];
      room_[static_cast<size_t>(problem.rank_of(c))] -= extra;
      // A limit of its own for each chunk, and what the rank must keep for its chunks after it.
      chunk_room_.push_back(chunk_limit - extra);
      split_.push_back(0);
    }
    later_room_.assign(static_cast<size_t>(num_chunks_) + static_cast<size_t>(problem.num_ranks), 0.0);
    later_need_ = later_room_;
    for (int c = num_chunks_ - 1; c >= 0; --c) {
      const auto chunk = static_cast<size_t>(c), next = chunk + static_cast<size_t>(problem.num_ranks);
      later_room_[chunk] = later_room_[next] + whole_layers(chunk_room_[chunk]);
      later_need_[chunk] = later_need_[next] + problem.least_layers(c) * problem.least_layer;
    }
  }

  std::optional<Split> run() {
    if (*std::min_element(room_.begin(), room_.end()) < -tolerance()) return std::nullopt;
    if (*std::min_element(chunk_room_.begin(), chunk_room_.end()) < -tolerance()) return std::nullopt;
    if (place(0, 0)) return split_;
    return std::nullopt;
  }

 private:
  double tolerance() const { return 1e-12 * problem_.prefix.back(); }
  double whole_layers(double room) const {
    if (problem_.equal_layer == 0 || room == infinity) return room;
    return problem_.equal_layer * std::floor(room / problem_.equal_layer + slack);
  }

  // Chunks [chunk, ..) have not been placed: do their ranks have room for the layers from `begin`?
  bool has_room(int chunk, int begin) const {
    double room = 0;
    for (int c = chunk; c < std::min(num_chunks_, chunk + problem_.num_ranks); ++c)
      room +=
          std::min(whole_layers(room_[static_cast<size_t>(problem_.rank_of(c))]), later_room_[static_cast<size_t>(c)]);
    return problem_.cost(begin, problem_.num_layers()) <= room + tolerance();
  }

  bool place(int chunk, int begin) {
    if (chunk == num_chunks_) return begin == problem_.num_layers();
    if (budget_-- <= 0 || !has_room(chunk, begin)) return false;
    const auto c = static_cast<size_t>(chunk);
    const double own_room = room_[static_cast<size_t>(problem_.rank_of(chunk))];
    const double most =
        std::min(chunk_room_[c], own_room - later_need_[c + static_cast<size_t>(problem_.num_ranks)]) + tolerance();
    const int least = problem_.least_layers(chunk);
    const int reserved = std::max(0, num_chunks_ - chunk - 2);  // a layer for each later chunk but the last
    const int last_end = problem_.num_layers() - reserved;
    if (chunk + 1 == num_chunks_)
      return problem_.cost(begin, problem_.num_layers()) <= most && put(chunk, begin, problem_.num_layers());
    // The end nearest to an even share of what the rank has left goes first, then outwards. The last chunks of the ranks
    // share nothing: they take what fits.
    const int remaining = (num_chunks_ - 1 - chunk) / problem_.num_ranks + 1;
    const double share = own_room / remaining;
    int high = begin + least;
    while (high <= last_end && problem_.cost(begin, high) <= std::min(share, most)) ++high;
    int low = high - 1;
    for (;;) {
      const bool can_low = low >= begin + least && low <= last_end && problem_.cost(begin, low) <= most;
      const bool can_high = high <= last_end && problem_.cost(begin, high) <= most;
      if (!can_low && !can_high) return false;
      const bool take_low =
          can_low && (!can_high || share - problem_.cost(begin, low) <= problem_.cost(begin, high) - share);
      const int end = take_low ? low-- : high++;
      if (put(chunk, begin, end)) return true;
      if (budget_ <= 0) return false;
    }
  }

  bool put(int chunk, int begin, int end) {
    double& room = room_[static_cast<size_t>(problem_.rank_of(chunk))];
    const double before = room;
    room -= problem_.cost(begin, end);
    split_[static_cast<size_t>(chunk)] = end - begin;
    if (place(chunk + 1, end)) return true;
    room = before;
    return false;
  }

  const Problem& problem_;
  int64_t& budget_;
  int num_chunks_;
  std::vector<double> room_, chunk_room_;        // [rank] left; [chunk]
  std::vector<double> later_room_, later_need_;  // [chunk]: of this and the rank's later chunks
  Split split_;
};

Problem make_problem(const LayerCosts& costs, int num_ranks, int chunks_per_rank) {
  LAMINA_CHECK(num_ranks >= 1 && chunks_per_rank >= 1, "{} ranks with {} chunks", num_ranks, chunks_per_rank);
  const auto is_cost = [](double cost) { return std::isfinite(cost) && cost >= 0; };
  for (const double cost : costs.layer) LAMINA_CHECK(is_cost(cost), "a layer costs {}", cost);
  LAMINA_CHECK(is_cost(costs.embedding) && is_cost(costs.head), "embedding {}, head {}", costs.embedding, costs.head);
  const auto num_chunks = static_cast<size_t>(num_ranks) * static_cast<size_t>(chunks_per_rank);
  const size_t least = num_chunks > 2 ? num_chunks - 2 : 1;
  if (costs.layer.size() < least)
    throw Error("{} layers are too few for {} pipeline ranks with {} virtual stages each: expected at least {}",
                costs.layer.size(), num_ranks, chunks_per_rank, least);
  Problem problem;
  problem.num_ranks = num_ranks;
  problem.prefix.assign(1, 0.0);
  for (const double cost : costs.layer) problem.prefix.push_back(problem.prefix.back() + cost);
  problem.extra.assign(num_chunks, 0.0);
  problem.extra.front() += costs.embedding;
  problem.extra.back() += costs.head;
  const auto [least_layer, most_layer] = std::minmax_element(costs.layer.begin(), costs.layer.end());
  problem.least_layer = *least_layer;
  if (*least_layer == *most_layer) problem.equal_layer = *least_layer;
  return problem;
}

Split even_split(const Problem& problem) {
  const auto layers = static_cast<int64_t>(problem.num_layers());
  const auto chunks = static_cast<int64_t>(problem.num_chunks());
  Split split;
  for (int64_t c = 0; c < chunks; ++c) split.push_back(layers * (c + 1) / chunks - layers * c / chunks);
  if (layers >= chunks || chunks <= 2) return split;
  // One or two short: the ends go without.
  std::fill(split.begin(), split.end(), 1);
  split.back() = 0;
  if (layers + 2 == chunks) split.front() = 0;
  return split;
}

// Least largest chunk, then least sum of squares, by dynamic programming. Exact where a rank's total is its only chunk, or all.
Split partition(const Problem& problem) {
  const auto num_chunks = static_cast<size_t>(problem.num_chunks()),
             num_layers = static_cast<size_t>(problem.num_layers());
  double limit = infinity;
  std::vector<std::vector<size_t>> begin_of;  // [chunk][end]
  for (const bool squares : {false, true}) {
    std::vector<double> best(num_layers + 1, infinity);  // of the chunks so far, ending there
    best[0] = 0;
    begin_of.assign(num_chunks, std::vector<size_t>(num_layers + 1, 0));
    for (size_t c = 0; c < num_chunks; ++c) {
      std::vector<double> next(num_layers + 1, infinity);
      const auto least = static_cast<size_t>(problem.least_layers(static_cast<int>(c)));
      for (size_t end = least; end <= num_layers; ++end)
        for (size_t begin = 0; begin + least <= end; ++begin) {
          const double cost = problem.prefix[end] - problem.prefix[begin] + problem.extra[c];
          const double value = squares ? best[begin] + cost * cost : std::max(best[begin], cost);
          if (cost > limit || !(value < next[end])) continue;
          next[end] = value;
          begin_of[c][end] = begin;
        }
      best = std::move(next);
    }
    if (!squares) limit = best.back() * (1 + slack);
  }
  Split split(num_chunks);
  size_t end = num_layers;
  for (size_t c = num_chunks; c-- > 0;) {
    split[c] = static_cast<int64_t>(end - begin_of[c][end]);
    end = begin_of[c][end];
  }
  return split;
}

}  // namespace

std::vector<int64_t> balanced_split(const LayerCosts& costs, int num_ranks, int chunks_per_rank) {
  constexpr int64_t steps_per_goal = 1'000'000;
  const Problem problem = make_problem(costs, num_ranks, chunks_per_rank);
  if (num_ranks == 1 || chunks_per_rank == 1) return partition(problem);
  Split best = descend(problem, even_split(problem));
  Quality quality = quality_of(problem, best);
  int64_t budget = steps_per_goal;
  while (const auto found = Search(problem, quality.rank * (1 - slack), infinity, budget).run()) {
    best = descend(problem, *found);
    quality = quality_of(problem, best);
  }
  budget = steps_per_goal;
  while (const auto found = Search(problem, quality.rank * (1 + slack), quality.chunk * (1 - slack), budget).run()) {
    best = *found;
    quality.chunk = quality_of(problem, best).chunk;
  }
  return best;
}

SplitBalance balance_of(const LayerCosts& costs, std::span<const int64_t> split, int num_ranks) {
  LAMINA_CHECK(num_ranks >= 1 && !split.empty() && split.size() % static_cast<size_t>(num_ranks) == 0,
               "{} chunks on {} ranks", split.size(), num_ranks);
  SplitBalance balance;
  balance.rank_cost.assign(static_cast<size_t>(num_ranks), 0.0);
  size_t layer = 0;
  for (size_t c = 0; c < split.size(); ++c) {
    LAMINA_CHECK(split[c] >= 0 && layer + static_cast<size_t>(split[c]) <= costs.layer.size(),
                 "chunk {} has {} layers from {} of {}", c, split[c], layer, costs.layer.size());
    for (int64_t i = 0; i < split[c]; ++i)
      balance.rank_cost[c % static_cast<size_t>(num_ranks)] += costs.layer[layer++];
  }
  LAMINA_CHECK(layer == costs.layer.size(), "a split of {} layers, {} in the model", layer, costs.layer.size());
  balance.rank_cost.front() += costs.embedding;
  balance.rank_cost.back() += costs.head;
  const double total = std::accumulate(balance.rank_cost.begin(), balance.rank_cost.end(), 0.0);
  const double largest = *std::max_element(balance.rank_cost.begin(), balance.rank_cost.end());
  if (total > 0) balance.imbalance = largest * num_ranks / total;
  return balance;
}

}  // namespace lamina::pipeline
