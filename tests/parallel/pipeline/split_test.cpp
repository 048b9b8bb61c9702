#include "parallel/pipeline/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>
#include <numeric>
#include <random>

#include "core/base/error.h"

namespace lamina::pipeline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Split = std::vector<int64_t>;

std::pair<double, double> largest_rank_and_chunk(const LayerCosts& costs, const Split& split, int num_ranks) {
  std::vector<double> rank(static_cast<size_t>(num_ranks), 0.0), chunk(split.size(), 0.0);
  chunk.front() += costs.embedding;
  chunk.back() += costs.head;
  size_t layer = 0;
  for (size_t c = 0; c < split.size(); ++c) {
    for (int64_t i = 0; i < split[c]; ++i) chunk[c] += costs.layer[layer++];
    rank[c % rank.size()] += chunk[c];
  }
  return {*std::max_element(rank.begin(), rank.end()), *std::max_element(chunk.begin(), chunk.end())};
}

// Every split there is.
std::pair<double, double> brute_force(const LayerCosts& costs, int num_ranks, int chunks_per_rank) {
  const auto num_chunks = static_cast<size_t>(num_ranks * chunks_per_rank);
  std::pair<double, double> best{1e300, 1e300};
  Split split(num_chunks);
  const std::function<void(size_t, int64_t)> place = [&](size_t chunk, int64_t left) {
    if (chunk + 1 == num_chunks) {
      split[chunk] = left;
      const auto found = largest_rank_and_chunk(costs, split, num_ranks);
      const bool ties = std::abs(found.first - best.first) <= 1e-9 * best.first;
      if (ties ? found.second < best.second : found.first < best.first)
        best = {ties ? best.first : found.first, found.second};
      return;
    }
    for (int64_t n = chunk == 0 ? 0 : 1; n <= left; ++n) {
      split[chunk] = n;
      place(chunk + 1, left - n);
    }
  };
  place(0, static_cast<int64_t>(costs.layer.size()));
  return best;
}

void expect_valid(const LayerCosts& costs, const Split& split, size_t num_chunks) {
  ASSERT_EQ(split.size(), num_chunks);
  EXPECT_EQ(std::accumulate(split.begin(), split.end(), int64_t{0}), static_cast<int64_t>(costs.layer.size()));
  for (size_t c = 0; c < split.size(); ++c)
    EXPECT_GE(split[c], c == 0 || c + 1 == split.size() ? 0 : 1) << "chunk " << c;
}

TEST(BalancedSplit, EqualsBruteForce) {
  std::mt19937 random(23);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  const auto real = [&](double low, double high) { return std::uniform_real_distribution<double>(low, high)(random); };
  for (int trial = 0; trial < 600; ++trial) {
    const int num_ranks = draw(1, 4), chunks_per_rank = draw(1, 3);
    const int num_chunks = num_ranks * chunks_per_rank;
    LayerCosts costs;
    const int kind = draw(0, 3);  // equal, two kinds in a pattern, integers, reals
    const int num_layers = std::max(1, num_chunks - 2) + draw(0, num_chunks > 8 ? 6 : 9);
    const int period = draw(2, 4);
    for (int i = 0; i < num_layers; ++i)
      costs.layer.push_back(kind == 0   ? 0.7
                            : kind == 1 ? (i % period == 0 ? 1.3 : 1.0)
                            : kind == 2 ? draw(0, 5)
                                        : real(0.2, 2));
    if (draw(0, 1) == 1) costs.embedding = real(0, 2);
    if (draw(0, 1) == 1) costs.head = real(0, 5);
    const Split split = balanced_split(costs, num_ranks, chunks_per_rank);
    expect_valid(costs, split, static_cast<size_t>(num_chunks));
    const auto found = largest_rank_and_chunk(costs, split, num_ranks);
    const auto best = brute_force(costs, num_ranks, chunks_per_rank);
    ASSERT_NEAR(found.first, best.first, 2e-9 * best.first) << trial;
    ASSERT_NEAR(found.second, best.second, 2e-9 * best.second) << trial;
    ASSERT_EQ(split, balanced_split(costs, num_ranks, chunks_per_rank));
  }
}

TEST(BalancedSplit, AHeavyHeadMovesLayersAway) {
  LayerCosts costs{std::vector<double>(16, 1.0), 0, 0};
  EXPECT_THAT(balanced_split(costs, 4, 1), ElementsAre(4, 4, 4, 4));
  costs.head = 5;  // 21 units over 4 ranks: 6 at most
  const Split split = balanced_split(costs, 4, 1);
  EXPECT_LE(split.back(), 1);
  EXPECT_EQ(largest_rank_and_chunk(costs, split, 4).first, 6);
  costs.head = 6;
  EXPECT_EQ(balanced_split(costs, 4, 1).back(), 0);
  // The other chunks of the last rank give way too, and the last one is empty when the head alone is the largest chunk.
  costs = {std::vector<double>(24, 1.0), 0, 5};
  const Split two = balanced_split(costs, 4, 2);
  EXPECT_EQ(two.back(), 0);
  EXPECT_EQ(largest_rank_and_chunk(costs, two, 4), std::make_pair(8.0, 5.0));
}

TEST(BalancedSplit, AHeavyEmbeddingEmptiesTheFirstChunk) {
  const LayerCosts costs{std::vector<double>(6, 1.0), 3, 0};
  EXPECT_THAT(balanced_split(costs, 3, 1), ElementsAre(0, 3, 3));
}

TEST(BalancedSplit, FewestLayersThatFit) {
  const LayerCosts costs{std::vector<double>(6, 1.0), 0, 0};
  EXPECT_THAT(balanced_split(costs, 4, 2), ElementsAre(0, 1, 1, 1, 1, 1, 1, 0));
  const LayerCosts one{{2.0}, 0, 1};
  EXPECT_THAT(balanced_split(one, 1, 1), ElementsAre(1));
  EXPECT_THAT(balanced_split(one, 2, 1), ElementsAre(1, 0));
}

TEST(BalancedSplit, TooFewLayers) {
  try {
    balanced_split({std::vector<double>(5, 1.0), 0, 0}, 4, 2);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("5 layers are too few for 4 pipeline ranks with 2 virtual stages each"));
    EXPECT_THAT(error.what(), HasSubstr("at least 6"));
  }
  EXPECT_THROW(balanced_split({{}, 0, 0}, 1, 1), Error);
  EXPECT_THROW(balanced_split({{1.0, -1.0}, 0, 0}, 1, 1), InternalError);
  EXPECT_THROW(balanced_split({{1.0}, 0, 0}, 0, 1), InternalError);
}

// The least rank total for layers of cost 1: every rank takes whole layers, whichever they are.
double least_rank_total(const LayerCosts& costs, int num_ranks) {
  double best = 1e300;
  for (const double extra : {0.0, costs.embedding, costs.head})
    for (size_t count = 0; count <= costs.layer.size(); ++count) {
      const double limit = extra + static_cast<double>(count);
      double room = (num_ranks - 2) * std::floor(limit + 1e-9);
      for (const double own : {costs.embedding, costs.head})
        room += limit < own ? -1e300 : std::floor(limit - own + 1e-9);
      if (room >= static_cast<double>(costs.layer.size())) best = std::min(best, limit);
    }
  return best;
}

// One chunk per rank: with each chunk as full as `limit` allows, do the layers fit?
bool fits(const LayerCosts& costs, int num_ranks, double limit) {
  size_t layer = 0;
  for (int r = 0; r < num_ranks; ++r) {
    double total = (r == 0 ? costs.embedding : 0) + (r + 1 == num_ranks ? costs.head : 0);
    if (total > limit) return false;
    while (layer < costs.layer.size() && total + costs.layer[layer] <= limit) total += costs.layer[layer++];
  }
  return layer == costs.layer.size();
}

// Realistic sizes: the time, and how far the worst rank is from the mean, which no split can beat.
TEST(BalancedSplit, LargeModelsInTime) {
  struct Case {
    int num_layers, num_ranks, chunks_per_rank;
    double imbalance;  // at most, with layers of two kinds
  };
  for (const Case& c : {Case{27, 3, 3, 1.10}, Case{27, 4, 2, 1.10}, Case{93, 8, 4, 1.05}, Case{93, 8, 8, 1.05},
                        Case{100, 16, 4, 1.11}, Case{100, 64, 1, 1.4}, Case{61, 8, 2, 1.10}, Case{96, 4, 1, 1.05}}) {
    for (const int kind : {0, 1, 2}) {
      std::mt19937 random(static_cast<unsigned>(c.num_layers));
      LayerCosts costs;
      for (int i = 0; i < c.num_layers; ++i)
        costs.layer.push_back(kind == 0   ? 1.0
                              : kind == 1 ? (i % 4 == 3 ? 1.31 : 1.0)
                                          : std::uniform_real_distribution<double>(0.9, 1.1)(random));
      costs.embedding = 0.05;
      costs.head = 1.7;
      const std::clock_t start = std::clock();  // processor time: neighbours don't count
      const Split split = balanced_split(costs, c.num_ranks, c.chunks_per_rank);
      const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      const SplitBalance balance = balance_of(costs, split, c.num_ranks);
      RecordProperty(std::to_string(c.num_layers) + "_" + std::to_string(c.num_ranks) + "x" +
                         std::to_string(c.chunks_per_rank) + "_" + std::to_string(kind),
                     std::to_string(seconds) + " s, " + std::to_string(balance.imbalance));
      expect_valid(costs, split, static_cast<size_t>(c.num_ranks * c.chunks_per_rank));
      EXPECT_LT(balance.imbalance, c.imbalance) << c.num_layers << " layers on " << c.num_ranks << ", kind " << kind;
      const double largest = largest_rank_and_chunk(costs, split, c.num_ranks).first;
      if (kind == 0) {
        EXPECT_NEAR(largest, least_rank_total(costs, c.num_ranks), 1e-9 * largest);
      }
      if (c.chunks_per_rank == 1) {
        EXPECT_FALSE(fits(costs, c.num_ranks, largest * (1 - 1e-6)));
      }
      EXPECT_LT(seconds, 5);  // a few tenths, and what sanitizers take
    }
  }
}

TEST(BalanceOf, CostsOfRanks) {
  const LayerCosts costs{{1, 2, 3, 4, 5}, 0.5, 2};
  const Split split{1, 2, 1, 1};
  const SplitBalance balance = balance_of(costs, split, 2);
  EXPECT_THAT(balance.rank_cost, ElementsAre(0.5 + 1 + 4, 2 + 3 + 5 + 2.0));
  EXPECT_DOUBLE_EQ(balance.imbalance, 12 / 8.75);
  EXPECT_DOUBLE_EQ(balance_of(costs, Split{5}, 1).imbalance, 1);
  EXPECT_DOUBLE_EQ(balance_of({{0, 0}, 0, 0}, Split{1, 1}, 2).imbalance, 1);
  EXPECT_THROW(balance_of(costs, Split{1, 2, 1}, 2), InternalError);
  EXPECT_THROW(balance_of(costs, Split{1, 2, 1, 2}, 2), InternalError);
  EXPECT_THROW(balance_of(costs, Split{1, 2, 1, 0}, 2), InternalError);
  EXPECT_THROW(balance_of(costs, Split{-1, 6}, 2), InternalError);
}

}  // namespace
}  // namespace lamina::pipeline
