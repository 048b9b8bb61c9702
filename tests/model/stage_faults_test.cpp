// Faults injected into the real stages: into the routes, into what travels, into the program. Each one has to be an error or
// a difference that the comparison with one rank sees; none may pass.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/stage_support.h"

namespace lamina::model {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// ---- routes ----

void erase(std::vector<int>& list, int value) {
  list.erase(std::remove(list.begin(), list.end(), value), list.end());
}

struct RouteFault {
  const char* name;
  // Returns the summary that it broke, or -1 when the chunk has nothing to break in this way.
  std::function<int(pipeline::BlockRoutes&, size_t chunk)> apply;
  const char* message;  // of the error, a regular expression
};

const std::vector<RouteFault>& route_faults() {
  static const std::vector<RouteFault> faults = {
      {"not sent and not expected",
       [](pipeline::BlockRoutes& routes, size_t c) {
         if (c + 1 >= routes.chunks.size() || routes.chunks[c].sent.empty()) return -1;
         const int summary = routes.chunks[c].sent.front();
         erase(routes.chunks[c].sent, summary);
         erase(routes.chunks[c + 1].received, summary);
         return summary;
       },
       "summary [0-9]+ of micro-batch [0-9]+ is not on pipeline rank"},
      {"sent twice",
       [](pipeline::BlockRoutes& routes, size_t c) {
         if (c + 1 >= routes.chunks.size() || routes.chunks[c].sent.empty()) return -1;
         const int summary = routes.chunks[c].sent.back();
         routes.chunks[c].sent.push_back(summary);
         routes.chunks[c + 1].received.push_back(summary);
         return summary;
       },
       "summary [0-9]+ of micro-batch [0-9]+ is on pipeline rank [0-9]+ already"},
      {"sent although the receiver has it",
       [](pipeline::BlockRoutes& routes, size_t c) {
         if (c == 0 || c + 1 >= routes.chunks.size() || routes.transport == BlockTransport::full) return -1;
         for (int summary : routes.chunks[c].reads)
           if (std::count(routes.chunks[c].sent.begin(), routes.chunks[c].sent.end(), summary) == 0 &&
               summary != routes.chunks[c].leaves_as_stream && summary == 0) {
             routes.chunks[c].sent.push_back(summary);
             routes.chunks[c + 1].received.push_back(summary);
             return summary;
           }
         return -1;
       },
       "summary [0-9]+ of micro-batch [0-9]+ is on pipeline rank [0-9]+ already"},
      {"released before its last reader",
       [](pipeline::BlockRoutes& routes, size_t c) {
         const size_t later = c + static_cast<size_t>(routes.num_ranks);
         if (routes.transport == BlockTransport::full || later >= routes.chunks.size()) return -1;
         for (int summary : routes.chunks[c].released) {
           const auto& reads = routes.chunks[later].reads;
           if (std::count(reads.begin(), reads.end(), summary) == 0) continue;
           erase(routes.chunks[c].released, summary);
           routes.chunks[later].released.push_back(summary);
           return summary;
         }
         return -1;
       },
       "summary [0-9]+ of micro-batch [0-9]+ is not on pipeline rank"},
      {"released twice",
       [](pipeline::BlockRoutes& routes, size_t c) {
         if (routes.chunks[c].released.empty()) return -1;
         routes.chunks[c].released.push_back(routes.chunks[c].released.front());
         return routes.chunks[c].released.back();
       },
       "summary [0-9]+ of micro-batch [0-9]+ is released twice"},
      {"never released",
       [](pipeline::BlockRoutes& routes, size_t c) {
         if (routes.chunks[c].released.empty()) return -1;
         const int summary = routes.chunks[c].released.back();
         routes.chunks[c].released.pop_back();
         return summary;
       },
       "summary [0-9]+ of micro-batch [0-9]+ left a value behind on pipeline rank"},
      // A deposit that nobody waits for, and one that never comes: in the counts, not yet in the sums.
      {"a reader too few",
       [](pipeline::BlockRoutes& routes, size_t c) {
         if (c == 0 || routes.chunks[c].received.empty()) return -1;
         const int summary = routes.chunks[c].received.front();
         erase(routes.chunks[c].reads, summary);
         return summary;
       },
       "gradient of summary [0-9]+, micro-batch [0-9]+, in chunk [0-9]+ has [0-9]+ of its [0-9]+ parts|is not on "
       "pipeline rank|"
       "left a .* behind|received by chunk"},
  };
  return faults;
}

TEST(StageFaults, AWrongRouteIsRefusedAndWouldBeSeen) {
  for (const Layout& layout : layouts()) {
    for (const RouteFault& fault : route_faults()) {
      int applied = 0;
      for (size_t c = 0; c < layout.layers.size(); ++c) {
        StagePlan plan = plan_of(layout);
        const int summary = fault.apply(plan.routes, c);
        if (summary < 0) continue;
        ++applied;
        SCOPED_TRACE(fmt::format("{}: summary {} in chunk {}", fault.name, summary, c));
        EXPECT_THROW(pipeline::validate(plan.routes, plan.split, plan.blocks), InternalError);
        const Outcome outcome = outcome_of(
            layout, {.plan = [&](StagePlan& broken) { fault.apply(broken.routes, c); }, .timeout_seconds = 5});
        EXPECT_THAT(outcome.message, ContainsRegex(fault.message)) << "difference " << outcome.error;
        EXPECT_THAT(outcome.message, HasSubstr(fmt::format("summary {}", summary)));
        EXPECT_THAT(outcome.message, ContainsRegex("rank [0-9]+: "));
      }
      if (&layout == &layouts().front()) {
        EXPECT_GT(applied, 0) << fault.name;
      }
    }
  }
}

// The sender sends another summary than the receiver files: the counts agree, the numbers don't.
TEST(StageFaults, AnotherSummaryInItsPlaceIsSeen) {
  int applied = 0;
  for (const Layout& layout : layouts())
    for (size_t c = 0; c + 1 < layout.layers.size(); ++c) {
      const auto replace = [c](StagePlan& plan) {
        std::vector<int>& sent = plan.routes.chunks[c].sent;
        for (int held : plan.routes.chunks[c].reads)
          if (!sent.empty() && std::count(sent.begin(), sent.end(), held) == 0) {
            sent.back() = held;
            return true;
          }
        return false;
      };
      StagePlan plan = plan_of(layout);
      if (!replace(plan)) continue;
      ++applied;
      EXPECT_THROW(pipeline::validate(plan.routes, plan.split, plan.blocks), InternalError);
      const Outcome outcome =
          outcome_of(layout, {.plan = [&](StagePlan& broken) { replace(broken); }, .timeout_seconds = 5});
      EXPECT_TRUE(outcome.message.find("summary") != std::string::npos || outcome.error > visible)
          << outcome.message << outcome.error;
    }
  EXPECT_GT(applied, 2);
}

// ---- messages ----

void scale(const TensorView& view, double factor) {
  for (int64_t i = 0; i < view.num_elements(); ++i) set(view, i, factor * get(view, i));
}

// Of every single summary gradient that is sent: lost (zero), doubled, and of every hidden stream's.
TEST(StageFaults, ALostOrDoubledGradientIsSeen) {
  for (const Layout& layout : layouts()) {
    const StagePlan plan = plan_of(layout);
    for (int c = 1; c < layout.num_chunks(); ++c) {
      const auto num_summaries = static_cast<int>(plan.routes.chunks[static_cast<size_t>(c)].received.size());
      for (int which = -1; which < num_summaries; ++which)
        for (const double factor : {0.0, 2.0}) {
          const auto tamper = [&](int chunk, int microbatch, pipeline::HopViews& views) {
            if (chunk != c || microbatch != 1) return;
            scale(which < 0 ? views.stream : views.summaries.at(static_cast<size_t>(which)), factor);
          };
          const Outcome outcome =
              outcome_of(layout, {.runner = [&](Tampering& runner, Stage&) { runner.backward = tamper; }});
          EXPECT_EQ(outcome.message, "");
          EXPECT_GT(outcome.error, visible) << "into chunk " << c << ", message " << which << " times " << factor;
        }
    }
  }
}

TEST(StageFaults, ASwappedOrStaleMessageIsSeen) {
  const Layout layout = layouts().front();
  int swapped = 0;
  const auto swap = [&swapped](int, int microbatch, pipeline::HopViews& views) {
    if (microbatch != 1 || views.summaries.empty()) return;
    std::swap(views.stream, views.summaries.front());
    ++swapped;
  };
  const Outcome forward = outcome_of(layout, {.runner = [&](Tampering& runner, Stage& stage) {
                                       if (stage.has_first_chunk()) runner.forward = swap;
                                     }});
  EXPECT_TRUE(forward.error > visible) << forward.message;
  const Outcome backward = outcome_of(layout, {.runner = [&](Tampering& runner, Stage& stage) {
                                        if (!stage.has_first_chunk()) runner.backward = swap;
                                      }});
  EXPECT_TRUE(backward.error > visible) << backward.message;
  EXPECT_GE(swapped, 2);
  // A buffer that is written again while its message is on the way.
  const Outcome stale = outcome_of(layout, {.runner = [](Tampering& runner, Stage&) {
                                     runner.forward = [](int, int microbatch, pipeline::HopViews& views) {
                                       if (microbatch == 2) scale(views.stream, 1.001);
                                     };
                                   }});
  EXPECT_TRUE(stale.error > visible) << stale.message;
}

// ---- programs ----

TEST(StageFaults, WorkThatIsDoneTwiceIsRefused) {
  for (const ActionKind kind : {ActionKind::forward, ActionKind::backward_input, ActionKind::backward_weight}) {
    Layout layout = layouts().front();
    layout.schedule = ScheduleName::zero_bubble;
    const auto twice = [&](Tampering& runner, Stage& stage) {
      if (stage.has_first_chunk())
        runner.after = [&stage, kind](const pipeline::Action& action) {
          if (action.kind == kind && action.chunk == 2 && action.microbatch == 1) stage.run(action);
        };
    };
    const Outcome outcome = outcome_of(layout, {.runner = twice, .timeout_seconds = 5});
    EXPECT_THAT(outcome.message,
                AllOf(HasSubstr("rank 0: "), ContainsRegex("2[FBIW]1|summary [0-9]+ of micro-batch 1")))
        << static_cast<int>(kind);
  }
}

// Any two neighbours in a rank's list exchanged: what the validator lets pass gives the right gradients.
TEST(StageFaults, TwoActionsSwappedAreRefusedOrHarmless) {
  int refused = 0, harmless = 0, seen = 0;
  for (const ScheduleName schedule : {ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble}) {
    Layout layout = layouts().front();
    layout.schedule = schedule;
    layout.num_microbatches = 2;
    const pipeline::Program good = layout.program();
    for (size_t rank = 0; rank < good.size(); ++rank)
      for (size_t i = 0; i + 1 < good[rank].size(); ++i) {
        pipeline::Program program = good;
        std::swap(program[rank][i], program[rank][i + 1]);
        bool valid = true;
        try {
          pipeline::validate(program, layout.num_chunks());
        } catch (const Error&) {
          valid = false;
        }
        const Outcome outcome = outcome_of(layout, {.program = &program, .timeout_seconds = 0.3});
        SCOPED_TRACE(
            fmt::format("rank {}: {} and {}", rank, to_string(program[rank][i]), to_string(program[rank][i + 1])));
        if (valid) {
          EXPECT_EQ(outcome.message, "");
          EXPECT_LE(outcome.error, rounding);
          ++harmless;
        } else {
          ++refused;
          seen += !outcome.message.empty() || outcome.error > visible;
        }
      }
  }
  EXPECT_GT(refused, 10);
  EXPECT_GT(seen, 5);  // without the validator too
  EXPECT_GT(harmless, 5);
}

TEST(StageFaults, MissingWorkIsRefused) {
  Layout layout = layouts().front();
  const pipeline::Program good = layout.program();
  int missing = 0;
  for (size_t rank = 0; rank < good.size(); ++rank)
    for (size_t i = 0; i < good[rank].size(); i += 3) {
      pipeline::Program program = good;
      program[rank].erase(program[rank].begin() + static_cast<std::ptrdiff_t>(i));
      EXPECT_THROW(pipeline::validate(program, layout.num_chunks()), Error) << to_string(good[rank][i]);
      const Outcome outcome = outcome_of(layout, {.program = &program, .timeout_seconds = 0.3});
      EXPECT_TRUE(!outcome.message.empty() || outcome.error > visible) << "without " << to_string(good[rank][i]);
      ++missing;
    }
  EXPECT_GT(missing, 10);
}

}  // namespace
}  // namespace lamina::model
