#include "model/stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/stage_support.h"

namespace lamina::model {
namespace {

using ::testing::ContainsRegex;

TEST(Stage, EqualsOneRank) {
  for (const Layout& layout : layouts()) EXPECT_LE(difference(gradients_of(layout), one_rank(layout)), rounding);
}

TEST(Stage, ASteadyStateAllocatesNothing) {
  for (const ScheduleName schedule : {ScheduleName::gpipe, ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble}) {
    Layout layout;
    layout.num_ranks = 1;
    layout.layers = {1, 2, 1};
    layout.block_size = 2;
    layout.schedule = schedule;
    layout.num_microbatches = 4;
    const StagePlan plan = plan_of(layout);
    const pipeline::Program program = layout.program();
    const auto comm = comm::make_self_communicator();
    Rank rank(layout, plan, 0);
    pipeline::Executor executor(*comm, rank.stage, layout.num_chunks());
    const auto forward = pipeline::lower(pipeline::forward_schedule(1, 3, 4), 3)[0];
    const double loss = rank.run(executor, program[0], true);
    EXPECT_NEAR(rank.run(executor, forward, false), loss, 1e-14);
    EXPECT_EQ(rank.run(executor, program[0], true), loss);  // the scratch arena is one piece from here on
    const int64_t allocations = rank.ledger.num_allocations();
    for (int step = 0; step < 4; ++step) {
      EXPECT_EQ(rank.run(executor, program[0], true), loss);
      EXPECT_NEAR(rank.run(executor, forward, false), loss, 1e-14);
    }
    EXPECT_EQ(rank.ledger.num_allocations(), allocations);
  }
}

// Between ranks, how many messages are on the way depends on the moment; what the schedule decides does not.
TEST(Stage, ASteadyPipelineAllocatesOnlyForMessages) {
  for (const Layout& layout : layouts()) {
    const StagePlan plan = plan_of(layout);
    const pipeline::Program program = layout.program();
    const auto forward =
        pipeline::lower(pipeline::forward_schedule(layout.num_ranks, layout.num_chunks(), layout.num_microbatches),
                        layout.num_chunks());
    const double expected = one_rank(layout).at("loss").front();
    comm::run_threads(layout.num_ranks, [&](comm::Communicator& comm) {
      Rank rank(layout, plan, comm.rank());
      pipeline::Executor executor(comm, rank.stage, layout.num_chunks());
      const auto r = static_cast<size_t>(comm.rank());
      std::map<std::string, MemoryLedger::Entry> before;
      for (int step = 0; step < 8; ++step) {
        const double loss = rank.run(executor, program[r], true);
        const double evaluated = rank.run(executor, forward[r], false);  // leaves nothing behind: end() looks
        if (rank.stage.has_last_chunk()) {
          EXPECT_NEAR(loss, expected, rounding);
          EXPECT_NEAR(evaluated, expected, rounding);
        }
        if (step == 2) before = rank.ledger.entries();
      }
      for (const auto& [purpose, entry] : rank.ledger.entries()) {
        if (purpose == "hidden streams" || purpose == "block summaries") continue;
        EXPECT_EQ(entry.num_allocations, before[purpose].num_allocations) << purpose << " on rank " << comm.rank();
      }
      // A buffer for each message and value that there is in a pass, and no more.
      const MemoryLedger::Entry streams = rank.ledger.entries().at("hidden streams");
      int64_t most = 0;
      for (int c = comm.rank(); c < layout.num_chunks(); c += layout.num_ranks) {
        const auto& routes = plan.routes.chunks[static_cast<size_t>(c)];
        most += 4 + static_cast<int64_t>(routes.received.size() + routes.sent.size());
      }
      EXPECT_LE(streams.num_allocations, most * layout.num_microbatches);
    });
  }
}

TEST(Stage, APassThatBrokeOffIsNotMistakenForAGoodOne) {
  Layout layout;
  layout.num_ranks = 1;
  layout.layers = {2, 2};
  layout.num_microbatches = 1;
  const StagePlan plan = plan_of(layout);
  const auto comm = comm::make_self_communicator();
  Rank rank(layout, plan, 0);
  pipeline::Executor executor(*comm, rank.stage, 2);
  pipeline::Program program = layout.program();
  program[0].pop_back();
  const auto failure = [&](const std::vector<pipeline::Step>& steps) -> std::string {
    try {
      rank.run(executor, steps, true);
    } catch (const InternalError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(failure(program[0]), ContainsRegex("summary [0-9]+ of micro-batch 0 left a (value|gradient) behind"));
  EXPECT_THAT(failure(layout.program()[0]), ContainsRegex("left a (value|gradient) behind"))
      << "the next pass begins on it";
}

}  // namespace
}  // namespace lamina::model
