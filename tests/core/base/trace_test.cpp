#include "core/base/trace.h"

#include <gtest/gtest.h>

#include <thread>
#include <type_traits>

#include "core/base/error.h"

namespace lamina::trace {
namespace {

Span named(const char* name) {
  Span span;
  span.name = name;
  return span;
}

TEST(TraceRecorder, IsEmptyAtFirst) {
  const Recorder recorder(Clock::now());
  EXPECT_TRUE(recorder.spans().empty());
  EXPECT_EQ(recorder.num_dropped(), 0u);
}

TEST(TraceRecorder, SpansLieBetweenTheMomentsOfTheirCalls) {
  Recorder recorder(Clock::now());
  const double before = recorder.now();
  const int64_t outer = recorder.open(named("outer"));
  const int64_t inner = recorder.open(named("inner"));
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  recorder.close(outer);  // in any order
  recorder.close(inner);
  const double after = recorder.now();
  ASSERT_EQ(recorder.spans().size(), 2u);
  EXPECT_STREQ(recorder.spans()[0].name, "outer");
  for (const Span& span : recorder.spans()) {
    EXPECT_GE(span.begin, before);
    EXPECT_GE(span.end - span.begin, 0.002);
    EXPECT_LE(span.end, after);
  }
  EXPECT_LE(recorder.spans()[0].end, recorder.spans()[1].end);
}

TEST(TraceRecorder, TheOriginMayBeEarlier) {
  const Recorder recorder(Clock::now() - std::chrono::seconds(5));
  EXPECT_GE(recorder.now(), 5);
  EXPECT_LT(recorder.now(), 60);
}

TEST(TraceRecorder, WhatDoesNotFitIsCountedAndDropped) {
  Recorder recorder(Clock::now(), 2);
  const int64_t first = recorder.open(named("first"));
  recorder.add(named("second"));
  const int64_t third = recorder.open(named("third"));
  recorder.add(named("fourth"));
  recorder.close(third);
  recorder.close(third);  // a dropped one has no state
  recorder.close(first);
  EXPECT_EQ(recorder.num_dropped(), 2u);
  ASSERT_EQ(recorder.spans().size(), 2u);
  EXPECT_STREQ(recorder.spans()[1].name, "second");
}

TEST(TraceRecorder, WithoutRoomEverythingIsDropped) {
  Recorder recorder(Clock::now(), 0);
  { const Scope scope(&recorder, Track::phases, "phase"); }
  EXPECT_EQ(recorder.num_dropped(), 1u);
  EXPECT_TRUE(recorder.spans().empty());
}

TEST(TraceRecorder, WrongUseIsABug) {
  Recorder recorder(Clock::now());
  const int64_t id = recorder.open(named("once"));
  EXPECT_THROW(recorder.spans(), InternalError);  // still open
  recorder.close(id);
  EXPECT_THROW(recorder.close(id), InternalError);
  EXPECT_THROW(recorder.close(7), InternalError);
  Span backwards = named("backwards");
  backwards.begin = 2;
  backwards.end = 1;
  EXPECT_THROW(recorder.add(backwards), InternalError);
  EXPECT_EQ(recorder.spans().size(), 1u);
}

TEST(TraceRecorder, StaysWhereItIs) {
  static_assert(!std::is_move_constructible_v<Recorder> && !std::is_copy_constructible_v<Recorder>);
  static_assert(!std::is_move_constructible_v<Scope> && !std::is_copy_constructible_v<Scope>);
}

TEST(TraceScope, IsASpanOfItsBlock) {
  Recorder recorder(Clock::now());
  {
    const Scope outer(&recorder, Track::phases, "outer");
    const Scope inner(&recorder, Track::waiting, "inner");
  }
  ASSERT_EQ(recorder.spans().size(), 2u);
  EXPECT_EQ(recorder.spans()[1].track, Track::waiting);
  EXPECT_GE(recorder.spans()[1].begin, recorder.spans()[0].begin);
  EXPECT_LE(recorder.spans()[1].end, recorder.spans()[0].end);
  EXPECT_NO_THROW(Scope(nullptr, Track::phases, "nothing"));
}

}  // namespace
}  // namespace lamina::trace
