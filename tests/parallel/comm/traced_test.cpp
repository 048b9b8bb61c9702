#include "parallel/comm/traced.h"

#include <gtest/gtest.h>

#include <utility>

#include "core/base/error.h"
#include "parallel/comm/thread.h"

namespace lamina::comm {
namespace {

using trace::Recorder;
using trace::Track;

// Done when told; counts what is asked of it.
struct Fake final : Request::State {
  struct Log {
    bool done = false, destroyed = false;
    int tests = 0, waits = 0;
  };
  explicit Fake(Log& its_log) : log(its_log) {}
  ~Fake() override { log.destroyed = true; }
  bool test() override {
    ++log.tests;
    return log.done;
  }
  void wait() override {
    ++log.waits;
    log.done = true;
  }
  Log& log;
};

Request begin(Fake::Log& log, Recorder& recorder) {
  trace::Span span;
  span.track = Track::sends;
  span.name = "message";
  const int64_t id = recorder.open(span);
  return traced(Request(std::make_unique<Fake>(log)), recorder, id);
}

TEST(TracedRequest, EndsItsSpanWhenFirstFoundDone) {
  Recorder recorder(trace::Clock::now());
  Fake::Log log;
  Request request = begin(log, recorder);
  EXPECT_FALSE(request.test());
  EXPECT_THROW(recorder.spans(), InternalError);  // still open
  log.done = true;
  EXPECT_TRUE(request.test());
  ASSERT_EQ(recorder.spans().size(), 1u);
  EXPECT_TRUE(request.test());
  request.wait();
  EXPECT_EQ(log.waits, 0);
}

TEST(TracedRequest, WaitsMovesAndEndsOnce) {
  Recorder recorder(trace::Clock::now());
  Fake::Log log;
  Request request = begin(log, recorder), moved = std::move(request);
  EXPECT_TRUE(request.test());  // NOLINT: moved from, so nothing is pending
  wait_traced(moved, &recorder, "wait");
  EXPECT_EQ(log.waits, 1);
  ASSERT_EQ(recorder.spans().size(), 2u);
  EXPECT_EQ(recorder.spans()[0].track, Track::sends);
  EXPECT_EQ(recorder.spans()[1].track, Track::waiting);
  EXPECT_GE(recorder.spans()[0].end, recorder.spans()[1].begin);
  EXPECT_LE(recorder.spans()[0].end, recorder.spans()[1].end);
}

TEST(TracedRequest, DestroyedItWaitsAsAnyRequest) {
  Recorder recorder(trace::Clock::now());
  Fake::Log log;
  { const Request request = begin(log, recorder); }
  EXPECT_EQ(log.waits, 1);
  EXPECT_EQ(recorder.spans().size(), 1u);
}

TEST(TracedRequest, GivenUpItDoesNotWait) {
  Recorder recorder(trace::Clock::now());
  Fake::Log log;
  Request request = begin(log, recorder);
  request.give_up();
  EXPECT_EQ(log.waits, 0);
  EXPECT_TRUE(log.destroyed);
  EXPECT_EQ(recorder.spans().size(), 1u);
}

TEST(TracedRequest, GivenUpByAnExceptionItDoesNotWait) {
  Recorder recorder(trace::Clock::now());
  Fake::Log log;
  try {
    const Request request = begin(log, recorder);
    throw Error("the step failed");
  } catch (const Error&) {
    EXPECT_EQ(log.waits, 0);
    EXPECT_TRUE(log.destroyed);
  }
  EXPECT_EQ(recorder.spans().size(), 1u);
}

TEST(TracedRequest, WithoutARecorderAWaitIsAWait) {
  Fake::Log log;
  Request request(std::make_unique<Fake>(log));
  wait_traced(request, nullptr, "wait");
  EXPECT_EQ(log.waits, 1);
}

TEST(TracedRequest, CarriesARealMessage) {
  run_threads(2, [](Communicator& comm) {
    Recorder recorder(trace::Clock::now());
    Stream stream;
    double value = comm.rank() == 0 ? 7.0 : 0.0;
    const TensorView view(&value, DType::f64, {1});
    const int64_t id = recorder.open({});
    Request request =
        traced(comm.rank() == 0 ? comm.send(view, 1, 3, stream) : comm.recv(view, 0, 3, stream), recorder, id);
    request.wait();
    EXPECT_EQ(value, 7.0);
    EXPECT_EQ(recorder.spans().size(), 1u);
  });
}

}  // namespace
}  // namespace lamina::comm
