#include "parallel/pipeline/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "core/base/error.h"
#include "tests/parallel/pipeline/layouts.h"

namespace lamina::pipeline {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// An independent check: the lists and the dependencies as one graph, which must have an order (Kahn's algorithm).
bool has_an_order(const Schedule& schedule, int num_chunks) {
  std::map<Action, std::vector<Action>> followers;
  std::map<Action, int> missing;
  std::set<Action> all;
  for (const auto& actions : schedule) all.insert(actions.begin(), actions.end());
  const auto edge = [&](const Action& before, const Action& after) {
    if (!all.contains(before)) return;
    followers[before].push_back(after);
    ++missing[after];
  };
  for (const auto& actions : schedule)
    for (size_t i = 0; i < actions.size(); ++i) {
      const auto [chunk, kind, m] = actions[i];
      if (i > 0) edge(actions[i - 1], actions[i]);
      if (kind == ActionKind::forward && chunk > 0) edge({chunk - 1, kind, m}, actions[i]);
      if (kind == ActionKind::backward || kind == ActionKind::backward_input) {
        edge({chunk, ActionKind::forward, m}, actions[i]);
        if (chunk + 1 < num_chunks) {
          edge({chunk + 1, ActionKind::backward, m}, actions[i]);
          edge({chunk + 1, ActionKind::backward_input, m}, actions[i]);
        }
      }
      if (kind == ActionKind::backward_weight) edge({chunk, ActionKind::backward_input, m}, actions[i]);
    }
  std::vector<Action> ready;
  for (const Action& action : all)
    if (!missing.contains(action)) ready.push_back(action);
  size_t done = 0;
  for (; !ready.empty(); ++done) {
    const Action action = ready.back();
    ready.pop_back();
    for (const Action& follower : followers[action])
      if (--missing[follower] == 0) ready.push_back(follower);
  }
  return done == all.size();
}

// Exactly one F and one B or I + W for each chunk and micro-batch, on the right rank, micro-batches ascending.
void expect_complete(const Schedule& schedule, const Layout& layout, bool forward_only) {
  std::map<Action, int> count;
  std::map<std::pair<int, ActionKind>, int> last;
  for (size_t rank = 0; rank < schedule.size(); ++rank)
    for (const Action& action : schedule[rank]) {
      ++count[action];
      ASSERT_EQ(action.chunk % layout.num_ranks, static_cast<int>(rank));
      auto [previous, first] = last.try_emplace({action.chunk, action.kind}, action.microbatch);
      ASSERT_TRUE(first || previous->second < action.microbatch) << to_string(action);
      previous->second = action.microbatch;
    }
  const bool split = layout.name == ScheduleName::zero_bubble;
  size_t expected = 0;
  for (int chunk = 0; chunk < layout.num_chunks(); ++chunk)
    for (int m = 0; m < layout.num_microbatches; ++m) {
      std::vector<ActionKind> kinds{ActionKind::forward};
      if (!forward_only && !split) kinds.push_back(ActionKind::backward);
      if (!forward_only && split) kinds.insert(kinds.end(), {ActionKind::backward_input, ActionKind::backward_weight});
      for (const ActionKind kind : kinds) ASSERT_EQ((count[{chunk, kind, m}]), 1);
      expected += kinds.size();
    }
  size_t total = 0;
  for (const auto& actions : schedule) total += actions.size();
  ASSERT_EQ(total, expected);
  ASSERT_TRUE(has_an_order(schedule, layout.num_chunks()));
}

TEST(Schedule, NamesActions) {
  EXPECT_EQ(to_string(Action{2, ActionKind::forward, 0}), "2F0");
  EXPECT_EQ(to_string(Action{0, ActionKind::backward, 13}), "0B13");
  EXPECT_EQ(to_string(Action{7, ActionKind::backward_input, 1}), "7I1");
  EXPECT_EQ(to_string(Action{7, ActionKind::backward_weight, 1}), "7W1");
}

TEST(Schedule, EveryLayoutIsCompleteAndHasAnOrder) {
  for_each_small_layout([](const Layout& layout) {
    SCOPED_TRACE(layout.to_string());
    const Schedule schedule = layout.make();
    expect_complete(schedule, layout, false);
    ASSERT_NO_THROW(validate(schedule, layout.num_chunks(), layout.num_microbatches));
    ASSERT_EQ(schedule, layout.make());
  });
}

TEST(Schedule, EveryForwardScheduleIsComplete) {
  for_each_small_layout([](const Layout& layout) {
    if (layout.name != ScheduleName::gpipe) return;
    SCOPED_TRACE(layout.to_string());
    const Schedule schedule = forward_schedule(layout.num_ranks, layout.num_chunks(), layout.num_microbatches);
    expect_complete(schedule, layout, true);
    ASSERT_NO_THROW(validate(schedule, layout.num_chunks(), layout.num_microbatches, true));
    EXPECT_THAT(error_of([&] { validate(schedule, layout.num_chunks(), layout.num_microbatches); }),
                HasSubstr("0B0 is missing on rank 0 (0I0 and 0W0 would do as well)"));
  });
}

// As Megatron-LM writes it: the k-th step of a rank's forward or backward, chunk and micro-batch from k by division.
TEST(Schedule, InterleavedIsMegatronsOrder) {
  for (const int num_ranks : {1, 2, 3, 4, 8})
    for (const int v : {1, 2, 3, 4})
      for (const int rounds : {1, 2, 3, 5}) {
        const int num_microbatches = rounds * num_ranks, total = num_microbatches * v;
        const Schedule schedule =
            make_schedule(ScheduleName::interleaved_1f1b, num_ranks, num_ranks * v, num_microbatches);
        for (int rank = 0; rank < num_ranks; ++rank) {
          const auto action = [&](int k, bool forward) {
            const int in_group = k % (num_ranks * v), local = in_group / num_ranks;
            const int m = k / (num_ranks * v) * num_ranks + in_group % num_ranks;
            return Action{(forward ? local : v - 1 - local) * num_ranks + rank,
                          forward ? ActionKind::forward : ActionKind::backward, m};
          };
          const int warmup =
              std::min(total, v == 1 ? num_ranks - rank - 1 : (num_ranks - rank - 1) * 2 + (v - 1) * num_ranks);
          std::vector<Action> expected;
          for (int k = 0; k < warmup; ++k) expected.push_back(action(k, true));
          for (int k = warmup; k < total; ++k) {
            expected.push_back(action(k, true));
            expected.push_back(action(k - warmup, false));
          }
          for (int k = total - warmup; k < total; ++k) expected.push_back(action(k, false));
          ASSERT_EQ(schedule[static_cast<size_t>(rank)], expected)
              << num_ranks << " ranks, " << v << " chunks each, rank " << rank;
        }
        if (v == 1) {
          EXPECT_EQ(schedule, make_schedule(ScheduleName::one_f_one_b, num_ranks, num_ranks, num_microbatches));
        }
      }
}

TEST(Schedule, GpipeRunsAllForwardsFirst) {
  for_each_small_layout([](const Layout& layout) {
    if (layout.name != ScheduleName::gpipe) return;
    for (const auto& actions : layout.make())
      EXPECT_TRUE(std::is_partitioned(actions.begin(), actions.end(),
                                      [](const Action& action) { return action.kind == ActionKind::forward; }));
  });
}

TEST(Schedule, RefusesWhatItCannotDo) {
  EXPECT_EQ(error_of([] { make_schedule(ScheduleName::one_f_one_b, 2, 4, 8); }),
            "schedule 1f1b has one chunk per rank, but there are 2 on each of 2 ranks: use interleaved_1f1b");
  for (const ScheduleName name : all_schedules) {
    EXPECT_THROW(make_schedule(name, 4, 6, 8), InternalError);
    EXPECT_THROW(make_schedule(name, 4, 0, 8), InternalError);
    EXPECT_THROW(make_schedule(name, 0, 4, 8), InternalError);
    EXPECT_THROW(make_schedule(name, 4, 4, 0), InternalError);
  }
  EXPECT_THROW(make_schedule(static_cast<ScheduleName>(9), 2, 2, 2), InternalError);
  EXPECT_THROW(forward_schedule(4, 6, 8), InternalError);
  EXPECT_THROW(forward_schedule(4, 4, -1), InternalError);
  EXPECT_THROW(validate(Schedule{}, 1, 1), InternalError);
  EXPECT_THROW(validate(Schedule(2), 3, 1), InternalError);
  EXPECT_THROW(validate(Schedule(2), 2, 0), InternalError);
}

TEST(Schedule, DrawsTheGrid) {
  const Schedule schedule = make_schedule(ScheduleName::one_f_one_b, 2, 2, 2);
  EXPECT_EQ(to_grid(schedule),
            "rank 0  0F0  0F1       0B0       0B1\n"
            "rank 1       1F0  1B0  1F1  1B1\n");
  const Action by_value{1, ActionKind::backward, 0};
  EXPECT_EQ(to_grid(schedule, &by_value),
            "rank 0  0F0  0F1       0B0       0B1\n"
            "rank 1       1F0 [1B0] 1F1  1B1\n");
  EXPECT_EQ(to_grid(schedule, &schedule[0].back()),
            "rank 0  0F0  0F1       0B0      [0B1]\n"
            "rank 1       1F0  1B0  1F1  1B1\n");
  // Twice there: the one at that address. The one that waits for ever (for itself) stands at the end.
  Schedule twice = schedule;
  twice[1].push_back(twice[1][1]);
  EXPECT_EQ(to_grid(twice, &twice[1].back()),
            "rank 0  0F0  0F1       0B0       0B1\n"
            "rank 1       1F0  1B0  1F1  1B1 [1B0]\n");
  EXPECT_EQ(to_grid(Schedule(1)), "rank 0\n");
}

TEST(ScheduleFaults, AreNamedAndMarked) {
  const Schedule good = make_schedule(ScheduleName::one_f_one_b, 2, 2, 3);
  const auto fault = [&](auto&& change) {
    Schedule schedule = good;
    change(schedule);
    return error_of([&] { validate(schedule, 2, 3); });
  };
  EXPECT_EQ(to_grid(good),
            "rank 0  0F0  0F1       0B0  0F2  0B1       0B2\n"
            "rank 1       1F0  1B0  1F1  1B1  1F2  1B2\n");
  EXPECT_EQ(fault([](Schedule& s) { std::swap(s[1][0], s[1][1]); }),
            "schedule: order error on rank 1: 1B0 comes before 1F0, which it needs\n"
            "rank 0  0F0  0F1  0B0  0F2  0B1  0B2\n"
            "rank 1           [1B0] 1F0  1F1  1B1  1F2  1B2\n");
  EXPECT_EQ(fault([](Schedule& s) { s[1].erase(s[1].begin() + 3); }),
            "schedule: 1B1 is missing on rank 1 (1I1 and 1W1 would do as well)\n"
            "rank 0  0F0  0F1       0B0  0F2            0B1  0B2\n"
            "rank 1       1F0  1B0  1F1       1F2 [1B1] 1B2\n");
  EXPECT_EQ(fault([](Schedule& s) { s[0].push_back(s[0][2]); }),
            "schedule: rank 0 runs 0B0 twice, as entries 2 and 6 of its list\n"
            "rank 0  0F0  0F1       0B0  0F2  0B1       0B2 [0B0]\n"
            "rank 1       1F0  1B0  1F1  1B1  1F2  1B2\n");
  EXPECT_THAT(fault([](Schedule& s) {
                s[0].push_back(s[1].back());
                s[1].pop_back();
              }),
              AllOf(StartsWith("schedule: rank 0 runs 1B2, but chunk 1 is on rank 1\n"), HasSubstr("[1B2]")));
  EXPECT_THAT(
      fault([](Schedule& s) { s[0][1].microbatch = 3; }),
      AllOf(StartsWith("schedule: rank 0 runs 0F3, but there are 2 chunks and 3 micro-batches, numbered from 0"),
            HasSubstr("[0F3]")));
  for (const Action& action : {Action{2, ActionKind::forward, 0}, Action{-2, ActionKind::forward, 0},
                               Action{0, ActionKind::forward, -1}, Action{1 << 30, ActionKind::backward, 1 << 30}})
    EXPECT_THAT(fault([&](Schedule& s) { s[0].push_back(action); }),
                AllOf(HasSubstr("but there are 2 chunks"), HasSubstr("[" + to_string(action) + "]")));
  EXPECT_THAT(fault([](Schedule& s) {
                s[1].insert(s[1].begin() + 2, {1, ActionKind::backward_weight, 0});
              }),
              AllOf(StartsWith("schedule: rank 1 runs 1W0, which is already a part of its 1B0\n"), HasSubstr("[1W0]")));
  EXPECT_THAT(fault([](Schedule& s) { std::swap(s[1][1], s[1][5]); }),
              StartsWith("schedule: order error on rank 1: 1B2 comes before 1F2, which it needs\n"));
  EXPECT_THAT(fault([](Schedule& s) { s[0].clear(); }), StartsWith("schedule: 0F0 is missing on rank 0\n"));
  const Schedule forwards = forward_schedule(2, 4, 2);
  Schedule with_backward = forwards;
  with_backward[0].push_back({2, ActionKind::backward, 0});
  EXPECT_THAT(error_of([&] { validate(with_backward, 4, 2, true); }),
              AllOf(StartsWith("schedule: rank 0 runs 2B0, but only forwards are expected\n"), HasSubstr("[2B0]")));
}

TEST(ScheduleFaults, DeadlocksNameTheirCycle) {
  const auto F = ActionKind::forward;
  const auto B = ActionKind::backward;
  const Schedule schedule{{{0, F, 0}, {0, B, 0}, {0, F, 1}, {0, B, 1}}, {{1, F, 0}, {1, F, 1}, {1, B, 0}, {1, B, 1}}};
  EXPECT_EQ(error_of([&] { validate(schedule, 2, 2); }),
            "schedule: deadlock: rank 0 waits at 0B0 for 1B0; rank 1 waits at 1F1 for 0F1\n"
            "rank 0  0F0      [0B0] 0F1  0B1\n"
            "rank 1       1F0  1F1  1B0  1B1\n");
}

TEST(ScheduleFaults, WeightGradientsCountAsWork) {
  const Layout layout{ScheduleName::zero_bubble, 3, 2, 4};
  const Schedule good = layout.make();
  Schedule mixed = good;  // B in place of I and W for one micro-batch is accepted
  for (auto& actions : mixed) {
    std::erase_if(actions, [](const Action& a) { return a.microbatch == 1 && a.kind == ActionKind::backward_weight; });
    for (Action& action : actions)
      if (action.microbatch == 1 && action.kind == ActionKind::backward_input) action.kind = ActionKind::backward;
  }
  // .. unless its weight gradient then overtakes the one before it.
  const std::string error = error_of([&] { validate(mixed, 6, 4); });
  EXPECT_TRUE(error.empty() || error.find("they ascend in each kind of action") != std::string::npos) << error;
  const auto drop = [&](const Action& dropped) {
    Schedule schedule = good;
    for (auto& actions : schedule) std::erase(actions, dropped);
    return error_of([&] { validate(schedule, 6, 4); });
  };
  EXPECT_THAT(drop({4, ActionKind::backward_weight, 2}), StartsWith("schedule: 4W2 is missing on rank 1\n"));
  EXPECT_THAT(drop({4, ActionKind::backward_input, 2}), StartsWith("schedule: 4I2 is missing on rank 1\n"));
  Schedule early = good;  // W before its I
  auto& actions = early[1];
  const auto weight = std::find(actions.begin(), actions.end(), Action{4, ActionKind::backward_weight, 0});
  const auto input = std::find(actions.begin(), actions.end(), Action{4, ActionKind::backward_input, 0});
  std::iter_swap(weight, input);
  EXPECT_THAT(error_of([&] { validate(early, 6, 4); }),
              StartsWith("schedule: order error on rank 1: 4W0 comes before 4I0, which it needs\n"));
}

const Layout fault_layouts[] = {{ScheduleName::gpipe, 3, 2, 4},       {ScheduleName::one_f_one_b, 4, 1, 6},
                                {ScheduleName::zero_bubble, 4, 1, 5}, {ScheduleName::interleaved_1f1b, 3, 2, 5},
                                {ScheduleName::zero_bubble, 2, 3, 4}, {ScheduleName::interleaved_1f1b, 1, 3, 2},
                                {ScheduleName::zero_bubble, 1, 2, 3}};

bool micro_batches_ascend(const Schedule& schedule) {
  std::map<std::pair<int, ActionKind>, int> last;
  for (const auto& actions : schedule)
    for (const Action& action : actions) {
      const auto [previous, first] = last.try_emplace({action.chunk, action.kind}, action.microbatch);
      if (!first && previous->second > action.microbatch) return false;
      previous->second = action.microbatch;
    }
  return true;
}

// A swap is refused exactly when the graph has no order any more or micro-batches don't ascend; then it is named.
TEST(ScheduleFaults, EverySwapIsCaughtOrHarmless) {
  int caught = 0, deadlocks = 0, harmless = 0;
  for (const Layout& layout : fault_layouts) {
    Schedule schedule = layout.make();
    for (auto& actions : schedule)
      for (size_t i = 0; i < actions.size(); ++i)
        for (size_t j = i + 1; j < actions.size(); ++j) {
          std::swap(actions[i], actions[j]);
          const bool valid = has_an_order(schedule, layout.num_chunks()) && micro_batches_ascend(schedule);
          const std::string error = error_of([&] { validate(schedule, layout.num_chunks(), layout.num_microbatches); });
          ASSERT_EQ(error.empty(), valid) << layout.to_string() << '\n' << to_grid(schedule) << error;
          if (!valid) {
            const bool deadlock = error.starts_with("schedule: deadlock: ");
            ASSERT_TRUE(deadlock || error.starts_with("schedule: order error on rank ")) << error;
            ASSERT_NE(error.find('['), std::string::npos) << error;
            // The neighbours of a swap name it: one of the two is in the message.
            const size_t first_line = error.find('\n');
            if (j == i + 1) {
              ASSERT_TRUE(error.find(to_string(actions[i])) < first_line ||
                          error.find(to_string(actions[j])) < first_line)
                  << error;
            }
            deadlocks += deadlock;
          }
          ++(valid ? harmless : caught);
          std::swap(actions[i], actions[j]);
        }
  }
  // Not vacuous.
  EXPECT_GT(caught, 1000);
  EXPECT_GT(deadlocks, 40);
  EXPECT_GT(harmless, 100);
}

TEST(ScheduleFaults, EveryDropDoubleAndMoveIsNamed) {
  for (const Layout& layout : fault_layouts) {
    const Schedule good = layout.make();
    const auto error = [&](const Schedule& schedule) {
      return error_of([&] { validate(schedule, layout.num_chunks(), layout.num_microbatches); });
    };
    for (size_t rank = 0; rank < good.size(); ++rank)
      for (size_t i = 0; i < good[rank].size(); ++i) {
        const std::string name = to_string(good[rank][i]);
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(i);
        Schedule schedule = good;
        schedule[rank].erase(schedule[rank].begin() + at);
        ASSERT_THAT(error(schedule),
                    AllOf(StartsWith("schedule: " + name + " is missing on rank " + std::to_string(rank)),
                          HasSubstr("[" + name + "]")));
        if (good.size() > 1) {
          const size_t other = (rank + 1) % good.size();
          schedule[other].insert(schedule[other].begin(), good[rank][i]);
          ASSERT_THAT(error(schedule),
                      AllOf(StartsWith(fmt::format("schedule: rank {} runs {}, but chunk {} is on rank {}\n", other,
                                                   name, good[rank][i].chunk, rank)),
                            HasSubstr("[" + name + "]")));
        }
        schedule = good;
        schedule[rank].insert(schedule[rank].begin() + static_cast<std::ptrdiff_t>(i / 2), good[rank][i]);
        ASSERT_THAT(error(schedule),
                    AllOf(StartsWith(fmt::format("schedule: rank {} runs {} twice, as entries {} and {} of its list\n",
                                                 rank, name, i / 2, i + 1)),
                          HasSubstr("[" + name + "]")));
      }
  }
}

TEST(ScheduleFaults, LargeGridsShowTheNeighbourhood) {
  Schedule schedule = make_schedule(ScheduleName::one_f_one_b, 512, 512, 1024);
  std::swap(schedule[300][700], schedule[300][702]);
  const std::string error = error_of([&] { validate(schedule, 512, 1024); });
  EXPECT_THAT(error, AllOf(HasSubstr("order error on rank 300"), HasSubstr("\nranks 296 to 304, slots "),
                           HasSubstr("\nrank 296 "), HasSubstr("\nrank 304 "), Not(HasSubstr("\nrank 305 "))));
  EXPECT_EQ(std::count(error.begin(), error.end(), '['), 1);
  EXPECT_EQ(std::count(error.begin(), error.end(), '\n'), 11);
  EXPECT_LT(error.size(), 4000u);
  // A cycle round many ranks is cut short: all ranks but the first run their second chunk before the first one.
  schedule = forward_schedule(100, 200, 1);
  for (size_t rank = 1; rank < schedule.size(); ++rank) std::swap(schedule[rank][0], schedule[rank][1]);
  EXPECT_THAT(
      error_of([&] { validate(schedule, 200, 1, true); }),
      StartsWith("schedule: deadlock: rank 0 waits at 100F0 for 99F0; rank 99 waits at 199F0 for 198F0; rank 98 "
                 "waits at 198F0 for 197F0; rank 97 waits at 197F0 for 196F0; .. round 100 ranks\nranks 0 to 4, "));
}

TEST(Schedule, SmallOnesAreGolden) {
  std::string text;
  for (const Layout& layout :
       {Layout{ScheduleName::gpipe, 3, 1, 4}, Layout{ScheduleName::gpipe, 2, 2, 3},
        Layout{ScheduleName::one_f_one_b, 4, 1, 6}, Layout{ScheduleName::one_f_one_b, 4, 1, 2},
        Layout{ScheduleName::interleaved_1f1b, 2, 2, 4}, Layout{ScheduleName::interleaved_1f1b, 4, 2, 4},
        Layout{ScheduleName::interleaved_1f1b, 3, 2, 2}, Layout{ScheduleName::interleaved_1f1b, 3, 2, 4},
        Layout{ScheduleName::zero_bubble, 4, 1, 6}, Layout{ScheduleName::zero_bubble, 2, 2, 4},
        Layout{ScheduleName::zero_bubble, 3, 2, 2}, Layout{ScheduleName::zero_bubble, 1, 2, 2}})
    text += layout.to_string() + '\n' + to_grid(layout.make()) + '\n';
  text += "forward only 2x2, 3 micro-batches\n" + to_grid(forward_schedule(2, 4, 3));
  expect_golden("schedules.txt", text);
}

TEST(Schedule, HundredsOfRanksTakeLittleTime) {
  const std::clock_t start = std::clock();  // of the processor: the machine may be busy
  for (const Layout& layout :
       {Layout{ScheduleName::gpipe, 512, 1, 1024}, Layout{ScheduleName::one_f_one_b, 512, 1, 1024},
        Layout{ScheduleName::interleaved_1f1b, 64, 8, 1024}, Layout{ScheduleName::interleaved_1f1b, 512, 2, 700},
        Layout{ScheduleName::zero_bubble, 512, 1, 1024}, Layout{ScheduleName::zero_bubble, 64, 8, 1000},
        Layout{ScheduleName::zero_bubble, 512, 4, 3}}) {
    SCOPED_TRACE(layout.to_string());
    const Schedule schedule = layout.make();
    ASSERT_NO_THROW(validate(schedule, layout.num_chunks(), layout.num_microbatches));
  }
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  RecordProperty("seconds", std::to_string(seconds));
  EXPECT_LT(seconds, 30);  // measured: under 1 s optimised; the limit is for sanitizers
}

}  // namespace
}  // namespace lamina::pipeline
