#include "parallel/pipeline/simulate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>
#include <map>
#include <random>
#include <tuple>

#include "core/base/error.h"
#include "tests/parallel/pipeline/layouts.h"

namespace lamina::pipeline {
namespace {

ChunkCosts equal_costs(int num_chunks, double forward = 1, double input = 1, double weight = 1) {
  const size_t n = static_cast<size_t>(num_chunks);
  return {std::vector<double>(n, forward), std::vector<double>(n, input), std::vector<double>(n, weight), {}, {}};
}
Timeline simulate_equal(const Layout& layout) {
  return simulate(layout.make(), equal_costs(layout.num_chunks()));
}

// By repeated relaxation, over and over all lists: slow, and nothing like the walk.
double makespan_by_relaxation(const Schedule& schedule, const ChunkCosts& costs) {
  std::map<Action, double> end;
  const int num_chunks = static_cast<int>(costs.forward.size());
  const auto ended = [&](int chunk, ActionKind kind, int m) {
    const auto found = end.find({chunk, kind, m});
    return found == end.end() ? 0 : found->second;
  };
  double makespan = 0;
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& actions : schedule) {
      double previous = 0;
      for (const Action& action : actions) {
        const auto [c, kind, m] = action;
        const size_t i = static_cast<size_t>(c);
        double start = previous, cost = costs.forward[i];
        if (kind == ActionKind::forward && c > 0)
          start = std::max(start, ended(c - 1, kind, m) + (costs.hop_forward.empty() ? 0 : costs.hop_forward[i - 1]));
        if (kind == ActionKind::backward || kind == ActionKind::backward_input) {
          cost = costs.backward_input[i] + (kind == ActionKind::backward ? costs.backward_weight[i] : 0);
          start = std::max(start, ended(c, ActionKind::forward, m));
          const double hop = costs.hop_backward.empty() || c + 1 == num_chunks ? 0 : costs.hop_backward[i];
          if (c + 1 < num_chunks)
            start = std::max(
                start,
                std::max(ended(c + 1, ActionKind::backward, m), ended(c + 1, ActionKind::backward_input, m)) + hop);
        }
        if (kind == ActionKind::backward_weight) {
          cost = costs.backward_weight[i];
          start = std::max(start, ended(c, ActionKind::backward_input, m));
        }
        double& slot = end[action];
        if (slot != start + cost) {
          slot = start + cost;
          changed = true;
        }
        previous = slot;
        makespan = std::max(makespan, slot);
      }
    }
  }
  return makespan;
}

TEST(Simulate, GpipeAndOneForwardOneBackwardMeetTheClosedForm) {
  for (const ScheduleName name : {ScheduleName::gpipe, ScheduleName::one_f_one_b})
    for (const int p : {1, 2, 3, 4, 8, 16})
      for (const int m : {1, 2, 3, 4, 8, 13, 32}) {
        const Timeline timeline = simulate_equal({name, p, 1, m});
        EXPECT_NEAR(timeline.bubble, static_cast<double>(p - 1) / (m + p - 1), 1e-15) << p << " ranks, " << m;
        EXPECT_EQ(timeline.makespan, 3 * (m + p - 1));
        for (const double busy : timeline.busy) EXPECT_EQ(busy, 3 * m);
      }
}

TEST(Simulate, InterleavedMeetsTheClosedForm) {
  for (const ScheduleName name : {ScheduleName::gpipe, ScheduleName::interleaved_1f1b})
    for (const int p : {1, 2, 3, 4, 8})
      for (const int v : {1, 2, 3, 4, 7})
        for (const int rounds : {1, 2, 5}) {
          const int m = rounds * p;
          EXPECT_NEAR(simulate_equal({name, p, v, m}).bubble, static_cast<double>(p - 1) / (v * m + p - 1), 1e-15);
        }
}

// The longest of: the last rank's wait for the first forward, all its work and the way back; and one micro-batch's way through
// all chunks with the others close behind it. Nothing can be faster; nothing is slower, for any number of micro-batches.
TEST(Simulate, NoOrderIsFasterThanInterleaved) {
  for (const ScheduleName name : {ScheduleName::gpipe, ScheduleName::interleaved_1f1b})
    for (int p = 1; p <= 9; ++p)
      for (int v = 1; v <= 5; ++v)
        for (int m = 1; m <= 31; ++m)
          ASSERT_EQ(simulate_equal({name, p, v, m}).makespan, 3 * std::max(m * v + p - 1, m + p * v - 1))
              << p << " ranks x " << v << " chunks, " << m << " micro-batches";
}

TEST(Simulate, ForwardsLeaveNoGap) {
  for (int p = 1; p <= 7; ++p)
    for (int v = 1; v <= 4; ++v)
      for (int m = 1; m <= 17; ++m) {
        const Timeline timeline = simulate(forward_schedule(p, p * v, m), equal_costs(p * v));
        ASSERT_EQ(timeline.makespan, std::max(m * v + p - 1, m + p * v - 1));
        EXPECT_THAT(timeline.peak_activation, testing::Each(1));  // freed after each forward
      }
}

// arXiv 2401.10241 table 1: the idle time of 1F1B is (P - 1)(F + I + W), of ZB-H1 (P - 1)(F + I - W).
TEST(Simulate, ZeroBubbleIdlesAsThePaperSays) {
  for (int p = 1; p <= 9; ++p)
    for (int m = p; m <= 4 * p + 3; ++m) {
      const Timeline one_f_one_b = simulate_equal({ScheduleName::one_f_one_b, p, 1, m}),
                     zero_bubble = simulate_equal({ScheduleName::zero_bubble, p, 1, m});
      EXPECT_EQ(one_f_one_b.makespan - 3 * m, (p - 1) * (1 + 1 + 1));
      EXPECT_EQ(zero_bubble.makespan - 3 * m, (p - 1) * (1 + 1 - 1)) << p << " ranks, " << m;
    }
  // Interleaved: the same idle time, of chunks that are V times smaller.
  for (int p = 1; p <= 9; ++p)
    for (int v = 2; v <= 5; ++v)
      for (int m = p; m <= 4 * p + 3; ++m)
        ASSERT_EQ(simulate_equal({ScheduleName::zero_bubble, p, v, m}).makespan, 3 * m * v + p - 1)
            << p << " ranks x " << v << " chunks, " << m << " micro-batches";
}

TEST(Simulate, ZeroBubbleIsNeverBehindWithEqualCosts) {
  for (int p = 1; p <= 10; ++p)
    for (int v = 1; v <= 5; ++v)
      for (int m = 1; m <= 24; ++m)
        ASSERT_LE(simulate_equal({ScheduleName::zero_bubble, p, v, m}).makespan,
                  simulate_equal({ScheduleName::interleaved_1f1b, p, v, m}).makespan)
            << p << " ranks x " << v << " chunks, " << m << " micro-batches";
}

// W shorter and I longer, as measured in the paper's table 5 (F : I : W about 18 : 20 : 10), or W the longest: always better
// than 1F1B in the steady state.
TEST(Simulate, ZeroBubbleHelpsWithUnequalCosts) {
  for (const auto& [forward, input, weight] : {std::tuple{18.0, 20.0, 10.0}, std::tuple{10.0, 10.0, 12.0}})
    for (const int p : {2, 4, 8})
      for (const int v : {1, 2, 4}) {
        const int m = 3 * p;
        const ChunkCosts costs = equal_costs(p * v, forward, input, weight);
        const double one_f_one_b = simulate(make_schedule(ScheduleName::interleaved_1f1b, p, p * v, m), costs).makespan;
        const double zero_bubble = simulate(make_schedule(ScheduleName::zero_bubble, p, p * v, m), costs).makespan;
        EXPECT_LT(zero_bubble, one_f_one_b) << p << " ranks x " << v << " chunks";
      }
}

// ---- zero_bubble made for unequal costs ----

struct CostCase {
  int num_ranks, chunks_per_rank, num_microbatches;
  ChunkCosts costs;
  Schedule make(ScheduleName name) const {
    return make_schedule(name, num_ranks, num_ranks * chunks_per_rank, num_microbatches, &costs);
  }
};

// Chunks uneven to a factor of 3, I and W 0.5 to 2.5 times F, in half of the cases a head of up to 6 forwards in the last
// chunk and hops of up to half a forward.
template <class Visit>
void for_each_cost_case(int count, Visit&& visit) {
  std::mt19937 random(2024);
  const auto uniform = [&](double low, double high) { return std::uniform_real_distribution(low, high)(random); };
  for (int i = 0; i < count; ++i) {
    CostCase c{std::uniform_int_distribution(2, 8)(random),
               std::uniform_int_distribution(1, 4)(random),
               std::uniform_int_distribution(1, 24)(random),
               {}};
    const int num_chunks = c.num_ranks * c.chunks_per_rank;
    const double input = uniform(0.5, 2.5), weight = uniform(0.5, 2.5), hop = i % 2 == 0 ? 0 : uniform(0, 0.5);
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      const double size = uniform(1, 3);
      c.costs.forward.push_back(size);
      c.costs.backward_input.push_back(size * input);
      c.costs.backward_weight.push_back(size * weight);
      if (hop > 0 && chunk > 0) {
        c.costs.hop_forward.push_back(uniform(0.5, 1) * hop);
        c.costs.hop_backward.push_back(uniform(0.5, 1) * hop);
      }
    }
    if (i % 4 >= 2) c.costs.forward.back() += uniform(0, 6);
    SCOPED_TRACE(fmt::format("case {}: {} ranks x {} chunks, {} micro-batches", i, c.num_ranks, c.chunks_per_rank,
                             c.num_microbatches));
    visit(c);
  }
}

TEST(Simulate, ZeroBubbleIsNeverBehindWithAnyCosts) {
  double gained = 0, unit_lost = 0;
  int count = 0;
  for_each_cost_case(1500, [&](const CostCase& c) {
    const int num_chunks = c.num_ranks * c.chunks_per_rank;
    const Schedule schedule = c.make(ScheduleName::zero_bubble);
    ASSERT_NO_THROW(validate(schedule, num_chunks, c.num_microbatches));
    const Timeline zero_bubble = simulate(schedule, c.costs),
                   interleaved = simulate(c.make(ScheduleName::interleaved_1f1b), c.costs);
    ASSERT_LE(zero_bubble.makespan, interleaved.makespan * (1 + 1e-6));
    for (const double peak : zero_bubble.peak_activation) ASSERT_LE(peak, interleaved.peak_activation[0]);
    const Schedule for_equal_costs =
        make_schedule(ScheduleName::zero_bubble, c.num_ranks, num_chunks, c.num_microbatches);
    const double unaware = simulate(for_equal_costs, c.costs).makespan;
    ASSERT_LE(zero_bubble.makespan, unaware * (1 + 1e-6));
    gained += 1 - zero_bubble.makespan / interleaved.makespan;
    unit_lost += unaware > interleaved.makespan * (1 + 1e-6);
    ++count;
  });
  RecordProperty("gained", fmt::format("{}", gained / count));
  RecordProperty("unit_lost", fmt::format("{}", unit_lost));
  EXPECT_EQ(count, 1500);
  EXPECT_GT(unit_lost, 100);       // measured: 262 orders for equal costs are behind
  EXPECT_GT(gained / count, 0.1);  // measured: 12 % of the time
}

// Ranks that disagree in the last bits of a cost, or in its unit, must still agree on the schedule.
TEST(Simulate, OnlyTheProportionsOfCostsCount) {
  std::mt19937 random(5);
  for_each_cost_case(100, [&](const CostCase& c) {
    CostCase other = c;
    for (auto* values : {&other.costs.forward, &other.costs.backward_input, &other.costs.backward_weight,
                         &other.costs.hop_forward, &other.costs.hop_backward})
      for (double& value : *values) value *= 0.003 * (1 + (random() % 2 == 0 ? 4e-16 : -4e-16));
    ASSERT_EQ(c.make(ScheduleName::zero_bubble), other.make(ScheduleName::zero_bubble));
    if (c.costs.hop_forward.empty()) {
      const ChunkCosts equal = equal_costs(c.num_ranks * c.chunks_per_rank, 0.3, 0.3, 0.3);
      const CostCase all_equal{c.num_ranks, c.chunks_per_rank, c.num_microbatches, equal};
      ASSERT_EQ(
          all_equal.make(ScheduleName::zero_bubble),
          make_schedule(ScheduleName::zero_bubble, c.num_ranks, c.num_ranks * c.chunks_per_rank, c.num_microbatches));
    }
  });
}

TEST(Simulate, ScheduleRefusesCostsThatDoNotFit) {
  const auto make = [](const ChunkCosts& costs) { make_schedule(ScheduleName::zero_bubble, 2, 4, 3, &costs); };
  const ChunkCosts good = equal_costs(4);
  EXPECT_NO_THROW(make(good));
  EXPECT_NO_THROW(make(equal_costs(4, 0, 0, 0)));  // nothing takes any time
  EXPECT_NO_THROW(make(equal_costs(4, 0, 1e300, 1e-300)));
  EXPECT_THROW(make(equal_costs(2)), InternalError);
  for (std::vector<double> ChunkCosts::*part :
       {&ChunkCosts::forward, &ChunkCosts::backward_input, &ChunkCosts::backward_weight, &ChunkCosts::hop_forward,
        &ChunkCosts::hop_backward}) {
    const bool hop = part == &ChunkCosts::hop_forward || part == &ChunkCosts::hop_backward;
    ChunkCosts costs = good;
    (costs.*part).assign(hop ? 4 : 3, 1);
    EXPECT_THROW(make(costs), InternalError);
    (costs.*part).assign(hop ? 3 : 4, 1);
    EXPECT_NO_THROW(make(costs));
    for (const double wrong : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
      (costs.*part)[1] = wrong;
      EXPECT_THROW(make(costs), InternalError) << wrong;
    }
  }
}

TEST(Simulate, ManyRanksWithCostsTakeLittleTime) {
  const std::clock_t start = std::clock();  // of the processor: the machine may be busy
  std::mt19937 random(3);
  for (const auto& [p, v, m] : {std::tuple{512, 1, 600}, std::tuple{64, 8, 300}}) {
    ChunkCosts costs = equal_costs(p * v);
    for (double& value : costs.forward) value = std::uniform_real_distribution(1.0, 3.0)(random);
    EXPECT_NO_THROW(validate(make_schedule(ScheduleName::zero_bubble, p, p * v, m, &costs), p * v, m));
  }
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  RecordProperty("seconds", std::to_string(seconds));
  EXPECT_LT(seconds, 100);  // measured: 3 s optimised; the limit is for sanitizers
}

TEST(Simulate, PeaksAreWithinTheBounds) {
  for_each_small_layout([](const Layout& layout) {
    SCOPED_TRACE(layout.to_string());
    const int p = layout.num_ranks, v = layout.chunks_per_rank, m = layout.num_microbatches;
    const Timeline timeline = simulate_equal(layout);
    const int group = m < p ? p : (m + m / p - 1) / (m / p);
    const auto interleaved = [&](int rank) {
      return std::min(m * v, v == 1 ? p - rank : 2 * (p - rank - 1) + (v - 1) * group + 1);
    };
    if (m >= p && m % p == 0) {
      ASSERT_EQ(group, p);
    }
    for (int rank = 0; rank < p; ++rank) {
      const double peak = timeline.peak_activation[static_cast<size_t>(rank)];
      switch (layout.name) {
        case ScheduleName::gpipe:
          ASSERT_EQ(peak, m * v);
          break;
        case ScheduleName::one_f_one_b:
          ASSERT_EQ(peak, std::min(m, p - rank));
          ASSERT_EQ(timeline.peak_microbatches[static_cast<size_t>(rank)], std::min(m, p - rank));
          break;
        case ScheduleName::interleaved_1f1b:
          ASSERT_LE(peak, interleaved(rank));
          if (m % p == 0) {
            ASSERT_EQ(peak, interleaved(rank));
          }
          break;
        case ScheduleName::zero_bubble:
          ASSERT_LE(peak, simulate_equal({ScheduleName::interleaved_1f1b, p, v, m}).peak_activation[0]);
          break;
      }
    }
  });
}

TEST(Simulate, EqualsRelaxationWithRandomCosts) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> cost(0.1, 3);
  for_each_small_layout([&](const Layout& layout) {
    if (layout.num_microbatches % 3 != 1 || layout.num_ranks == 5) return;
    SCOPED_TRACE(layout.to_string());
    const size_t n = static_cast<size_t>(layout.num_chunks());
    ChunkCosts costs = equal_costs(layout.num_chunks());
    for (auto* values : {&costs.forward, &costs.backward_input, &costs.backward_weight})
      for (double& value : *values) value = cost(random);
    if (layout.num_ranks > 1) {
      costs.hop_forward.resize(n - 1);
      costs.hop_backward.resize(n - 1);
      for (auto* values : {&costs.hop_forward, &costs.hop_backward})
        for (double& value : *values) value = cost(random) / 3;
    }
    const Schedule schedule = layout.make();
    const Timeline timeline = simulate(schedule, costs);
    ASSERT_NEAR(timeline.makespan, makespan_by_relaxation(schedule, costs), 1e-9);
    double busy = 0;
    for (size_t rank = 0; rank < schedule.size(); ++rank) {
      double rank_busy = 0;
      for (size_t i = 0; i < schedule[rank].size(); ++i) {
        const auto [start, end] = timeline.spans[rank][i];
        rank_busy += end - start;
        if (i > 0) {
          ASSERT_GE(start, timeline.spans[rank][i - 1].end);
        }
      }
      ASSERT_NEAR(rank_busy, timeline.busy[rank], 1e-9);
      busy += rank_busy;
    }
    ASSERT_NEAR(timeline.bubble, 1 - busy / (layout.num_ranks * timeline.makespan), 1e-9);
  });
}

TEST(Simulate, HopsDelayTheReceiver) {
  const Schedule schedule = make_schedule(ScheduleName::gpipe, 2, 2, 1);
  ChunkCosts costs = equal_costs(2);
  costs.hop_forward = {0.5};
  costs.hop_backward = {0.25};
  const Timeline timeline = simulate(schedule, costs);
  EXPECT_DOUBLE_EQ(timeline.spans[1][0].start, 1.5);
  EXPECT_DOUBLE_EQ(timeline.spans[0][1].start, 4.75);
  EXPECT_DOUBLE_EQ(timeline.makespan, 6.75);
  // One rank has no hops.
  costs.hop_forward = costs.hop_backward = {100};
  EXPECT_DOUBLE_EQ(simulate(make_schedule(ScheduleName::gpipe, 1, 2, 1), costs).makespan, 6);
}

TEST(Simulate, ActivationsAreWeightedByChunk) {
  // Rank 0 holds two micro-batches of chunk 0 and two of chunk 2 when its first backward starts.
  const Timeline timeline =
      simulate(make_schedule(ScheduleName::interleaved_1f1b, 2, 4, 2), equal_costs(4), {10, 1, 100, 5});
  EXPECT_THAT(timeline.peak_activation, testing::ElementsAre(2 * 10 + 2 * 100, 2 * 1 + 5));
  EXPECT_THAT(timeline.peak_microbatches, testing::ElementsAre(2, 2, 2, 1));
}

TEST(Simulate, RefusesWhatDoesNotFit) {
  const Schedule schedule = make_schedule(ScheduleName::gpipe, 2, 2, 1);
  ChunkCosts costs = equal_costs(2);
  costs.hop_forward = {1, 2};
  EXPECT_THROW(simulate(schedule, costs), InternalError);
  costs = equal_costs(2);
  costs.backward_weight.pop_back();
  EXPECT_THROW(simulate(schedule, costs), InternalError);
  EXPECT_THROW(simulate(schedule, equal_costs(3)), InternalError);
  EXPECT_THROW(simulate(schedule, equal_costs(2), {1}), InternalError);
  EXPECT_THROW(simulate({}, equal_costs(1)), InternalError);
  EXPECT_THROW(simulate(make_schedule(ScheduleName::gpipe, 2, 4, 1), equal_costs(2)), InternalError);
  Schedule stuck = schedule;
  std::swap(stuck[1][0], stuck[1][1]);
  EXPECT_THROW(simulate(stuck, equal_costs(2)), InternalError);
  const Timeline timeline = simulate(schedule, equal_costs(2));
  EXPECT_THROW(to_text(schedule, timeline, 0), InternalError);
  EXPECT_THROW(to_text(make_schedule(ScheduleName::gpipe, 2, 2, 2), timeline), InternalError);
  EXPECT_THROW(to_text(make_schedule(ScheduleName::gpipe, 1, 2, 1), timeline), InternalError);
}

TEST(Simulate, Draws) {
  const Schedule schedule = make_schedule(ScheduleName::zero_bubble, 2, 2, 2);
  EXPECT_EQ(to_text(schedule, simulate(schedule, equal_costs(2)), 14),
            "rank 0  FFFF..IIWWIIWW\nrank 1  ..FFIIFFIIWWWW\n");
  const Schedule empty(1);
  EXPECT_EQ(to_text(empty, simulate(empty, equal_costs(1)), 4), "rank 0  ....\n");
}

TEST(Simulate, SummariesAreGolden) {
  struct Size {
    int p, v, m;
  };
  std::string text =
      "Equal chunks, F = I = W = 1. idle: chunk times that a rank waits; peak: micro-batches in flight, first and last "
      "rank\n"
      "schedule          ranks x chunks, micro-batches   makespan    idle  bubble   peak\n";
  const std::clock_t start = std::clock();  // of the processor: the machine may be busy
  for (const auto& [p, v, m] :
       {Size{1, 2, 4},     Size{2, 2, 8},     Size{4, 1, 8},     Size{4, 1, 16},     Size{4, 2, 8},
        Size{4, 2, 16},    Size{8, 2, 8},     Size{8, 2, 16},    Size{4, 4, 3},      Size{4, 4, 7},
        Size{8, 4, 37},    Size{16, 1, 64},   Size{16, 4, 64},   Size{32, 2, 128},   Size{64, 8, 256},
        Size{100, 3, 250}, Size{128, 1, 512}, Size{256, 2, 300}, Size{512, 1, 1024}, Size{512, 2, 512}})
    for (const ScheduleName name : all_schedules) {
      if (name == ScheduleName::one_f_one_b && v > 1) continue;
      const Timeline timeline = simulate_equal({name, p, v, m});
      text += fmt::format("{:16}  {:5} x {:6}, {:13} {:10.0f} {:7.0f}  {:6.4f}   {:.0f} {:.0f}\n", name_of(name), p, v,
                          m, timeline.makespan, timeline.makespan - 3 * m * v, timeline.bubble,
                          timeline.peak_activation.front(), timeline.peak_activation.back());
    }
  expect_golden("summary.txt", text);
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 30);  // measured: under 1 s optimised; the limit is for sanitizers
}

}  // namespace
}  // namespace lamina::pipeline
