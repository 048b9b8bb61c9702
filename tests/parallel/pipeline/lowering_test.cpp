#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "core/base/error.h"
#include "parallel/pipeline/schedule.h"
#include "tests/parallel/pipeline/layouts.h"

namespace lamina::pipeline {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

bool is_send(const Step& step) {
  return step.kind == StepKind::send_forward || step.kind == StepKind::send_backward;
}

// A machine of queues that knows messages only: (direction, hop, place in the queue). Sends never wait, a compute step waits
// until the receive that was posted for it has its message. Returns whether everything ends and every value is the right one.
bool runs_to_the_end(const Program& program, int num_chunks) {
  struct Rank {
    size_t next = 0;
    std::map<Action, std::pair<std::pair<bool, int>, size_t>> posted;  // what is received -> (queue, place)
  };
  std::map<std::pair<bool, int>, std::vector<int>> sent;  // (forward, hop) -> micro-batches, in the order of the sends
  std::map<std::pair<bool, int>, size_t> num_posted;
  std::vector<Rank> ranks(program.size());
  std::set<Action> computed;
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t rank = 0; rank < program.size(); ++rank) {
      Rank& state = ranks[rank];
      while (state.next < program[rank].size()) {
        const auto& [kind, action] = program[rank][state.next];
        const bool forward = kind == StepKind::send_forward || kind == StepKind::receive_forward;
        if (kind == StepKind::compute) {
          const bool is_forward = action.kind == ActionKind::forward;
          const bool needs = is_forward ? action.chunk > 0
                                        : action.kind != ActionKind::backward_weight && action.chunk + 1 < num_chunks;
          if (needs && program.size() > 1) {
            const auto posted = state.posted.find(
                {action.chunk, is_forward ? ActionKind::forward : ActionKind::backward, action.microbatch});
            if (posted == state.posted.end()) return false;
            const auto& [queue, place] = posted->second;
            if (sent[queue].size() <= place) break;
            if (sent[queue][place] != action.microbatch) return false;
          }
          computed.insert(action);
        } else if (kind == StepKind::send_forward || kind == StepKind::send_backward) {
          const bool made = computed.contains({action.chunk, ActionKind::forward, action.microbatch}) &&
                            (forward || computed.contains({action.chunk, ActionKind::backward, action.microbatch}) ||
                             computed.contains({action.chunk, ActionKind::backward_input, action.microbatch}));
          if (!made) return false;
          sent[{forward, forward ? action.chunk : action.chunk - 1}].push_back(action.microbatch);
        } else {
          const std::pair<bool, int> queue{forward, forward ? action.chunk - 1 : action.chunk};
          state.posted[{action.chunk, forward ? ActionKind::forward : ActionKind::backward, action.microbatch}] = {
              queue, num_posted[queue]++};
        }
        ++state.next;
        progress = true;
      }
    }
  }
  for (size_t rank = 0; rank < program.size(); ++rank)
    if (ranks[rank].next < program[rank].size()) return false;
  for (const auto& [queue, messages] : sent)
    if (num_posted[queue] != messages.size()) return false;  // nothing is left over
  return true;
}

TEST(Lowering, NamesSteps) {
  const Action forward{2, ActionKind::forward, 0}, backward{2, ActionKind::backward, 0};
  EXPECT_EQ(to_string(Step{StepKind::compute, {2, ActionKind::backward_weight, 0}}), "2W0");
  EXPECT_EQ(to_string(Step{StepKind::receive_forward, forward}), "recv 2F0");
  EXPECT_EQ(to_string(Step{StepKind::send_forward, forward}), "send 2F0");
  EXPECT_EQ(to_string(Step{StepKind::receive_backward, backward}), "recv 2B0");
  EXPECT_EQ(to_string(Step{StepKind::send_backward, backward}), "send 2B0");
  EXPECT_THROW(to_string(Step{static_cast<StepKind>(9), forward}), InternalError);
}

TEST(Lowering, EveryLayoutRunsToTheEnd) {
  for_each_small_layout([](const Layout& layout) {
    SCOPED_TRACE(layout.to_string());
    const Schedule schedule = layout.make();
    const Program program = lower(schedule, layout.num_chunks());
    ASSERT_NO_THROW(validate(program, layout.num_chunks()));
    ASSERT_TRUE(runs_to_the_end(program, layout.num_chunks()));
    ASSERT_EQ(program.size(), schedule.size());
    for (size_t rank = 0; rank < program.size(); ++rank) {
      std::vector<Action> computes;
      for (const Step& step : program[rank])
        if (step.kind == StepKind::compute) computes.push_back(step.action);
      ASSERT_EQ(computes, schedule[rank]);
      if (program.size() == 1) {
        ASSERT_EQ(program[rank].size(), schedule[rank].size());
      }
    }
  });
}

TEST(Lowering, ForwardsOnly) {
  for (const int num_ranks : {1, 2, 3, 5})
    for (const int v : {1, 2, 3})
      for (const int m : {1, 2, 4, 7}) {
        const int num_chunks = num_ranks * v;
        const Program program = lower(forward_schedule(num_ranks, num_chunks, m), num_chunks);
        ASSERT_NO_THROW(validate(program, num_chunks));
        ASSERT_TRUE(runs_to_the_end(program, num_chunks));
      }
}

// Receives are one compute action ahead of their use, the first at the start; sends right behind the action that makes them.
TEST(Lowering, PlacesTheMessages) {
  for_each_small_layout([](const Layout& layout) {
    if (layout.num_ranks == 1 || layout.num_microbatches > 6) return;
    SCOPED_TRACE(layout.to_string());
    const int last_chunk = layout.num_chunks() - 1;
    for (const auto& steps : lower(layout.make(), layout.num_chunks())) {
      std::vector<size_t> computes;
      for (size_t i = 0; i < steps.size(); ++i)
        if (steps[i].kind == StepKind::compute) computes.push_back(i);
      for (size_t k = 0; k < computes.size(); ++k) {
        const Action& action = steps[computes[k]].action;
        const bool forward = action.kind == ActionKind::forward, weight = action.kind == ActionKind::backward_weight;
        const Action as_message{action.chunk, forward ? ActionKind::forward : ActionKind::backward, action.microbatch};
        const Step receive{forward ? StepKind::receive_forward : StepKind::receive_backward, as_message};
        const Step send{forward ? StepKind::send_forward : StepKind::send_backward, as_message};
        const auto receive_at = static_cast<size_t>(std::find(steps.begin(), steps.end(), receive) - steps.begin());
        if (!weight && (forward ? action.chunk > 0 : action.chunk < last_chunk)) {
          // After compute step k - 2 (and its send), before step k - 1.
          EXPECT_LT(receive_at, k == 0 ? computes[0] : computes[k - 1]);
          if (k >= 2) {
            EXPECT_GT(receive_at, computes[k - 2]);
          }
        }
        const bool sends = !weight && (forward ? action.chunk < last_chunk : action.chunk > 0);
        const size_t behind = computes[k] + 1;
        EXPECT_EQ(behind < steps.size() && is_send(steps[behind]), sends);
        if (sends) {
          EXPECT_EQ(steps[behind], send);
        }
      }
    }
  });
}

TEST(Lowering, RefusesDescendingMicrobatchesAndBadSizes) {
  Schedule schedule = make_schedule(ScheduleName::gpipe, 2, 2, 2);
  EXPECT_THROW(lower(schedule, 3), InternalError);
  EXPECT_THROW(lower(Schedule{}, 1), InternalError);
  for (auto& actions : schedule) std::swap(actions[0], actions[1]);
  EXPECT_THROW(lower(schedule, 2), InternalError);  // consistent at both ends, but not in the order of the tags
  schedule[0][0].chunk = 2;
  EXPECT_THROW(lower(schedule, 2), InternalError);
  EXPECT_THROW(validate(Program(2), 3), InternalError);
  EXPECT_THROW(validate(Program{}, 1), InternalError);
}

class ProgramFaults : public testing::Test {
 protected:
  static std::string error(const Program& program, int num_chunks) {
    return error_of([&] { validate(program, num_chunks); });
  }
  static size_t at(const std::vector<Step>& steps, const std::string& name) {
    const auto found =
        std::find_if(steps.begin(), steps.end(), [&](const Step& step) { return to_string(step) == name; });
    EXPECT_NE(found, steps.end()) << name;
    return static_cast<size_t>(found - steps.begin());
  }
};

TEST_F(ProgramFaults, AreNamed) {
  const Program good = lower(make_schedule(ScheduleName::one_f_one_b, 2, 2, 3), 2);
  const auto fault = [&](auto&& change) {
    Program program = good;
    change(program[0], program[1]);
    return error(program, 2);
  };
  using Steps = std::vector<Step>;
  const auto erase = [](Steps& steps, const char* name) {
    steps.erase(steps.begin() + static_cast<std::ptrdiff_t>(at(steps, name)));
  };
  EXPECT_EQ(fault([&](Steps& r0, Steps&) { erase(r0, "send 0F1"); }),
            "program: send 0F1 is missing on rank 0; recv 1F1 waits for it on rank 1\n"
            "rank 0  0F0 [0F1]      0B0  0F2  0B1       0B2\n"
            "rank 1       1F0  1B0  1F1  1B1  1F2  1B2\n");
  EXPECT_THAT(fault([&](Steps& r0, Steps&) { erase(r0, "recv 0B1"); }),
              AllOf(StartsWith("program: recv 0B1 is missing on rank 0; send 1B1 waits for it on rank 1\n"),
                    HasSubstr("[0B1]")));
  EXPECT_THAT(fault([&](Steps& r0, Steps&) { r0.push_back(r0[at(r0, "send 0F2")]); }),
              StartsWith("program: rank 0 has send 0F2 twice\n"));
  EXPECT_THAT(fault([&](Steps&, Steps& r1) {
                r1.push_back({StepKind::receive_backward, {1, ActionKind::backward, 0}});
              }),
              StartsWith("program: rank 1 has recv 1B0, but no step of it needs what is received\n"));
  EXPECT_THAT(fault([&](Steps& r0, Steps& r1) { r1.push_back(r0[at(r0, "send 0F2")]); }),
              StartsWith("program: rank 1 has send 0F2, but no step of it makes what is sent\n"));
  for (const Action& action : {Action{0, ActionKind::forward, 9}, Action{0, ActionKind::forward, -1},
                               Action{1, ActionKind::forward, 0}, Action{-1, ActionKind::forward, 0}})
    EXPECT_THAT(fault([&](Steps& r0, Steps&) {
                  r0.push_back({StepKind::send_forward, action});
                }),
                HasSubstr("has send " + to_string(action) + ", but no step of it makes what is sent"));
  EXPECT_THAT(
      fault([&](Steps& r0, Steps&) { std::swap(r0[at(r0, "0F1")], r0[at(r0, "send 0F1")]); }),
      AllOf(StartsWith("program: rank 0 has send 0F1 before 0F1, which makes what is sent\n"), HasSubstr("[0F1]")));
  EXPECT_THAT(fault([&](Steps&, Steps& r1) {
                const Step receive = r1[at(r1, "recv 1F2")];
                erase(r1, "recv 1F2");
                r1.insert(r1.begin() + static_cast<std::ptrdiff_t>(at(r1, "1F2")) + 1, receive);
              }),
              AllOf(StartsWith("program: rank 1 posts recv 1F2 after 1F2, which needs it\n"), HasSubstr("[1F2]")));
  EXPECT_THAT(fault([&](Steps& r0, Steps&) {
                // Both before what needs them, but the other end sends them the other way round.
                const Step receive = r0[at(r0, "recv 0B1")];
                erase(r0, "recv 0B1");
                r0.insert(r0.begin(), receive);
              }),
              StartsWith("program: order error: rank 0 posts recv 0B1 where rank 1 has send 1B0: they are message 0 of "
                         "their chunk and direction\n"));
  EXPECT_THAT(fault([&](Steps& r0, Steps&) { erase(r0, "0F1"); }), StartsWith("schedule: 0F1 is missing on rank 0\n"));
  EXPECT_THAT(fault([&](Steps& r0, Steps&) { std::swap(r0[at(r0, "0F0")], r0[at(r0, "0F1")]); }),
              StartsWith("schedule: order error on rank 0: "));
  EXPECT_THAT(fault([&](Steps& r0, Steps&) { r0[at(r0, "0F1")].action.microbatch = 1 << 30; }),
              StartsWith("program: 12 compute steps can't be all of 2 chunks and 1073741825 micro-batches"));
  EXPECT_THAT(fault([&](Steps& r0, Steps& r1) {
                r0.clear();
                r1.clear();
              }),
              StartsWith("program: 0 compute steps"));
}

TEST_F(ProgramFaults, LateSendsDeadlock) {
  // Chunk 0's backward waits for a send that stands behind a forward that waits for what comes after that backward.
  Program program = lower(make_schedule(ScheduleName::one_f_one_b, 2, 2, 3), 2);
  auto& steps = program[1];
  const Step send = steps[at(steps, "send 1B0")];
  steps.erase(steps.begin() + static_cast<std::ptrdiff_t>(at(steps, "send 1B0")));
  const auto behind = [&](const char* name) {
    return steps.begin() + static_cast<std::ptrdiff_t>(at(steps, name)) + 1;
  };
  Program harmless = program;
  steps.insert(behind("1F1"), send);
  EXPECT_EQ(error(program, 2), "");
  EXPECT_TRUE(runs_to_the_end(program, 2));
  steps = harmless[1];
  steps.erase(steps.begin() + static_cast<std::ptrdiff_t>(at(steps, "send 1B1")));
  steps.insert(behind("1F2"), {send, Step{StepKind::send_backward, {1, ActionKind::backward, 1}}});
  EXPECT_FALSE(runs_to_the_end(program, 2));
  EXPECT_THAT(
      error(program, 2),
      StartsWith("program: deadlock: rank 0 waits at 0B0 for send 1B0 of rank 1; rank 1 waits at 1F2 for send 0F2 "
                 "of rank 0\nrank 0  0F0  0F1      [0B0]"));
}

TEST_F(ProgramFaults, OneRankSendsNothing) {
  Program program = lower(make_schedule(ScheduleName::interleaved_1f1b, 1, 3, 2), 3);
  EXPECT_EQ(error(program, 3), "");
  program[0].push_back({StepKind::send_forward, {0, ActionKind::forward, 0}});
  EXPECT_THAT(error(program, 3), StartsWith("program: rank 0 has send 0F0, but no step of it makes what is sent\n"));
}

const Layout fault_layouts[] = {{ScheduleName::one_f_one_b, 3, 1, 4},
                                {ScheduleName::interleaved_1f1b, 2, 2, 3},
                                {ScheduleName::zero_bubble, 3, 1, 3},
                                {ScheduleName::zero_bubble, 2, 2, 2},
                                {ScheduleName::gpipe, 3, 2, 2}};

TEST_F(ProgramFaults, EveryDropAndDoubleIsNamed) {
  for (const Layout& layout : fault_layouts) {
    const Program good = lower(layout.make(), layout.num_chunks());
    for (size_t rank = 0; rank < good.size(); ++rank)
      for (size_t i = 0; i < good[rank].size(); ++i) {
        const std::string name = to_string(good[rank][i]);
        Program program = good;
        program[rank].erase(program[rank].begin() + static_cast<std::ptrdiff_t>(i));
        ASSERT_THAT(error(program, layout.num_chunks()),
                    HasSubstr(name + " is missing on rank " + std::to_string(rank)));
        program = good;
        program[rank].insert(program[rank].begin() + static_cast<std::ptrdiff_t>(i), good[rank][i]);
        ASSERT_THAT(error(program, layout.num_chunks()), HasSubstr(name)) << name;
        ASSERT_THAT(error(program, layout.num_chunks()), HasSubstr("twice")) << name;
      }
  }
}

// Messages are moved to any other place of their rank's list: refused exactly when the machine of queues doesn't get to the end.
TEST_F(ProgramFaults, EveryMovedMessageIsCaughtOrHarmless) {
  int caught = 0, harmless = 0, deadlocks = 0;
  for (const Layout& layout : fault_layouts) {
    const Program good = lower(layout.make(), layout.num_chunks());
    for (size_t rank = 0; rank < good.size(); ++rank)
      for (size_t from = 0; from < good[rank].size(); ++from)
        for (size_t to = 0; to < good[rank].size(); ++to) {
          const Step step = good[rank][from];
          if (step.kind == StepKind::compute || to == from) continue;
          Program program = good;
          program[rank].erase(program[rank].begin() + static_cast<std::ptrdiff_t>(from));
          program[rank].insert(program[rank].begin() + static_cast<std::ptrdiff_t>(to), step);
          const std::string message = error(program, layout.num_chunks());
          ASSERT_EQ(message.empty(), runs_to_the_end(program, layout.num_chunks()))
              << layout.to_string() << ": " << to_string(step) << " from " << from << " to " << to << '\n'
              << message;
          ++(message.empty() ? harmless : caught);
          deadlocks += message.starts_with("program: deadlock: ");
        }
  }
  EXPECT_GT(caught, 1000);
  EXPECT_GT(harmless, 500);
  EXPECT_GT(deadlocks, 20);
}

std::string program_text(const Layout& layout) {
  std::string text = layout.to_string() + '\n';
  const Program program = lower(layout.make(), layout.num_chunks());
  for (size_t rank = 0; rank < program.size(); ++rank) {
    text += fmt::format("rank {}:", rank);
    for (size_t i = 0; i < program[rank].size(); ++i) {
      const Step& step = program[rank][i];
      text += i == 0 ? " " : step.kind == StepKind::compute ? " | " : ", ";
      text += to_string(step);
    }
    text += '\n';
  }
  return text + '\n';
}

TEST(Lowering, SmallOnesAreGolden) {
  std::string text;
  for (const Layout& layout :
       {Layout{ScheduleName::gpipe, 2, 1, 2}, Layout{ScheduleName::one_f_one_b, 3, 1, 4},
        Layout{ScheduleName::interleaved_1f1b, 2, 2, 3}, Layout{ScheduleName::zero_bubble, 3, 1, 3},
        Layout{ScheduleName::interleaved_1f1b, 1, 2, 2}})
    text += program_text(layout);
  expect_golden("programs.txt", text);
}

TEST(Lowering, HundredsOfRanksTakeLittleTime) {
  const std::clock_t start = std::clock();  // of the processor: the machine may be busy
  for (const Layout& layout :
       {Layout{ScheduleName::one_f_one_b, 512, 1, 1024}, Layout{ScheduleName::zero_bubble, 64, 8, 1024}}) {
    const Program program = lower(layout.make(), layout.num_chunks());
    ASSERT_NO_THROW(validate(program, layout.num_chunks())) << layout.to_string();
  }
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_LT(seconds, 30);  // measured: about 1 s optimised; the limit is for sanitizers
}

}  // namespace
}  // namespace lamina::pipeline
