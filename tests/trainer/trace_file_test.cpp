// Whole traces of real runs are checked from outside, by tests/integration/trace_test.py.
#include "trainer/record/trace_file.h"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

namespace lamina {
namespace {

using nlohmann::json;
using trace::Span;
using trace::Track;

json parsed(const std::string& list) {
  return json::parse("[" + list + "]");
}

Span span_of(Track track, const char* name, double begin, double end) {
  Span span;
  span.track = track;
  span.name = name;
  span.begin = begin;
  span.end = end;
  return span;
}

std::map<std::string, int> threads_of(const json& events) {
  std::map<std::string, int> tids;
  for (const json& event : events)
    if (event["name"] == "thread_name") tids[event["args"]["name"]] = event["tid"];
  return tids;
}

TEST(TraceFile, OfNothingIsANamedProcess) {
  const RankTrace trace = trace_of_rank(3, "rank 3 (a \"host\")", {});
  const json events = parsed(trace.events);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["name"], "process_name");
  EXPECT_EQ(events[0]["pid"], 3);
  EXPECT_EQ(events[0]["args"]["name"], "rank 3 (a \"host\")");
  EXPECT_EQ(trace.actions, "");
}

TEST(TraceFile, AnActionIsAnEventInMicrosecondsAndARowInSeconds) {
  Span span = span_of(Track::compute, "Bi", 0.25, 0.5);
  span.chunk = 4;
  span.microbatch = 7;
  const RankTrace trace = trace_of_rank(1, "rank 1", {span});
  const json event = parsed(trace.events).back();
  EXPECT_EQ(event["ph"], "X");
  EXPECT_EQ(event["name"], "4Bi7");
  EXPECT_EQ(event["ts"].get<double>(), 250000);
  EXPECT_EQ(event["dur"].get<double>(), 250000);
  EXPECT_EQ(event["args"], json({{"chunk", 4}, {"microbatch", 7}, {"kind", "Bi"}}));
  EXPECT_EQ(json::parse(trace.actions),
            json({{"rank", 1}, {"chunk", 4}, {"microbatch", 7}, {"kind", "Bi"}, {"start", 0.25}, {"end", 0.5}}));
}

TEST(TraceFile, MessagesInFlightTogetherLieOnSeveralThreads) {
  // Given in another order than they begin; the third fits behind the first.
  std::vector<Span> spans = {span_of(Track::sends, "F", 0.1, 0.4), span_of(Track::sends, "F", 0.0, 0.2),
                             span_of(Track::sends, "F", 0.2, 0.3), span_of(Track::compute, "F", 0.0, 1.0)};
  for (size_t i = 0; i < spans.size(); ++i) {
    spans[i].chunk = 0;
    spans[i].microbatch = static_cast<int>(i);
  }
  spans[0].bytes = 5;
  spans[0].peer = 2;
  const json events = parsed(trace_of_rank(0, "rank 0", spans).events);
  const std::map<std::string, int> tids = threads_of(events);
  ASSERT_EQ(tids.size(), 3u);
  std::map<std::string, int> tid_of;
  for (const json& event : events)
    if (event["ph"] == "X") tid_of[event["name"]] = event["tid"];
  EXPECT_EQ(tid_of.at("send 0F1"), tids.at("send"));
  EXPECT_EQ(tid_of.at("send 0F0"), tids.at("send 2"));
  EXPECT_EQ(tid_of.at("send 0F2"), tids.at("send"));
  EXPECT_EQ(tid_of.at("0F3"), tids.at("compute"));
  for (const json& event : events) {
    if (event["name"] != "send 0F0") continue;
    EXPECT_EQ(event["args"], json({{"chunk", 0}, {"microbatch", 0}, {"kind", "F"}, {"peer", 2}, {"bytes", 5}}));
  }
}

TEST(TraceFile, PhasesMayContainEachOther) {
  const json events = parsed(
      trace_of_rank(0, "rank 0", {span_of(Track::phases, "gather", 0.5, 1), span_of(Track::phases, "update", 0, 1)})
          .events);
  EXPECT_EQ(threads_of(events).size(), 1u);
  EXPECT_EQ(events[events.size() - 2]["name"], "update");  // the outer one first
}

TEST(TraceFile, TheSimulationIsTheScheduleMovedInTime) {
  const pipeline::Schedule schedule = pipeline::make_schedule(ScheduleName::one_f_one_b, 2, 2, 3);
  pipeline::ChunkCosts costs;
  costs.forward = {1, 1};
  costs.backward_input = {2, 2};
  costs.backward_weight = {0, 0};
  const pipeline::Timeline timeline = pipeline::simulate(schedule, costs);
  const RankTrace trace = trace_of_simulation(schedule, timeline, 10, 8);
  const json actions = parsed(trace.actions);
  ASSERT_EQ(actions.size(), 12u);
  double first = 1e9, last = 0;
  for (const json& action : actions) {
    first = std::min(first, action["start"].get<double>());
    last = std::max(last, action["end"].get<double>());
    EXPECT_EQ(action["rank"], action["chunk"]);
    EXPECT_NEAR(action["end"].get<double>() - action["start"].get<double>(), action["kind"] == "F" ? 1 : 2, 1e-12);
  }
  EXPECT_EQ(first, 10);
  EXPECT_NEAR(last, 10 + timeline.makespan, 1e-12);
  std::set<int> pids;
  for (const json& event : parsed(trace.events)) pids.insert(event["pid"].get<int>());
  EXPECT_EQ(pids, (std::set<int>{8, 9}));
}

}  // namespace
}  // namespace lamina
