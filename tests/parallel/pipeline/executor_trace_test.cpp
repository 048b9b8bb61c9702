// What the executor records, and that recording costs no memory.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <tuple>

#include "parallel/comm/thread.h"
#include "parallel/pipeline/executor.h"
#include "tests/parallel/pipeline/toy_model.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they bring an operator new of their own
namespace {
thread_local int64_t num_allocations = 0;
}

// The program's own, so that what a call allocates can be counted.
[[gnu::noinline]] void* operator new(size_t size) {
  ++num_allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
#endif

namespace lamina::pipeline {
namespace {

using trace::Recorder;
using trace::Span;
using trace::Track;

struct Plan {
  std::vector<int64_t> layers;
  int num_ranks = 1, num_microbatches = 1;
  ScheduleName name = ScheduleName::interleaved_1f1b;

  int num_chunks() const { return static_cast<int>(layers.size()); }
  ChunkSplit split() const { return make_chunk_split(layers); }
  BlockLayout blocks() const {
    ModelConfig config;
    config.num_hidden_layers = split().begin.back() / 2;
    config.residual = Residual::block_attnres;
    config.attn_res_block_size = 1;
    return make_block_layout(config);
  }
  Schedule schedule() const { return make_schedule(name, num_ranks, num_chunks(), num_microbatches); }
};

std::map<std::tuple<std::string, int, int>, int> count(const std::vector<Span>& spans, Track track) {
  std::map<std::tuple<std::string, int, int>, int> found;
  for (const Span& span : spans)
    if (span.track == track) ++found[{span.name, span.chunk, span.microbatch}];
  return found;
}

void check_rank(const Plan& plan, int rank, const Recorder& recorder, const ExecutionReport& report, double began,
                double ended) {
  static constexpr const char* kinds[] = {"F", "B", "Bi", "W"};
  std::map<std::tuple<std::string, int, int>, int> expected, waits, sends;
  const Schedule schedule = plan.schedule();
  for (const Action& action : schedule[static_cast<size_t>(rank)]) {
    const bool is_forward = action.kind == ActionKind::forward;
    expected[{kinds[static_cast<size_t>(action.kind)], action.chunk, action.microbatch}] = 1;
    if (action.kind == ActionKind::backward_weight || plan.num_ranks == 1) continue;
    const char* name = is_forward ? "F" : "B";
    if (action.chunk != (is_forward ? 0 : plan.num_chunks() - 1)) waits[{name, action.chunk, action.microbatch}] = 1;
    if (action.chunk != (is_forward ? plan.num_chunks() - 1 : 0)) sends[{name, action.chunk, action.microbatch}] = 1;
  }
  const std::vector<Span>& spans = recorder.spans();
  EXPECT_EQ(count(spans, Track::compute), expected);
  EXPECT_EQ(count(spans, Track::waiting), waits);
  EXPECT_EQ(count(spans, Track::receives), waits);
  EXPECT_EQ(count(spans, Track::sends), sends);
  int64_t bytes = 0, summary_bytes = 0;
  double busy = 0, waited = 0, last_end = began;
  for (const Span& span : spans) {
    EXPECT_GE(span.begin, began);
    EXPECT_LE(span.end, ended);
    if (span.track == Track::sends) {
      bytes += span.bytes;
      summary_bytes += span.summary_bytes;
    }
    if (span.track == Track::sends || span.track == Track::receives) {
      EXPECT_GE(span.peer, 0);
      EXPECT_NE(span.peer, rank);
    }
    if (span.track == Track::waiting) waited += span.end - span.begin;
    if (span.track != Track::compute) continue;
    busy += span.end - span.begin;
    EXPECT_GE(span.begin, last_end - 1e-9);  // one after the other
    last_end = span.end;
  }
  EXPECT_EQ(bytes, report.stream_bytes_sent + report.summary_bytes_sent);
  EXPECT_EQ(summary_bytes, report.summary_bytes_sent);
  EXPECT_NEAR(busy, report.busy_seconds, 1e-9 * static_cast<double>(1 + spans.size()));
  EXPECT_LE(busy + waited, ended - began);
}

void check(const Plan& plan) {
  toy::Parameters parameters = toy::Parameters::random(plan.split().begin.back(), 5);
  const ChunkSplit split = plan.split();
  const BlockLayout blocks = plan.blocks();
  const BlockRoutes routes = make_block_routes(split, blocks, plan.num_ranks, BlockTransport::cached);
  const Program program = lower(plan.schedule(), plan.num_chunks());
  std::mutex mutex;
  comm::run_threads(plan.num_ranks, [&](comm::Communicator& comm) {
    toy::Rank runner(split, blocks, routes, parameters);
    Executor executor(comm, runner, plan.num_chunks());
    runner.during_run = [&] { executor.progress(); };
    Stream stream;
    const auto& steps = program[static_cast<size_t>(comm.rank())];
    Recorder recorder(trace::Clock::now());
    executor.set_trace(&recorder);
    const double began = recorder.now();
    const ExecutionReport report = executor.run(steps, stream);
    const double ended = recorder.now();
    const size_t num_spans = recorder.spans().size();
    executor.set_trace(nullptr);
    executor.run(steps, stream);
    const std::lock_guard lock(mutex);
    EXPECT_EQ(recorder.spans().size(), num_spans);  // off
    check_rank(plan, comm.rank(), recorder, report, began, ended);
  });
}

TEST(ExecutorTrace, HasEveryActionMessageAndWaitOnce) {
  check({{2}, 1, 3});
  for (const ScheduleName name : {ScheduleName::gpipe, ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble})
    for (const int num_microbatches : {1, 4}) {
      check({{1, 2}, 2, num_microbatches, name});
      check({{1, 1, 2, 1}, 2, num_microbatches, name});
      check({{1, 1, 1}, 3, num_microbatches, name});
    }
}

// The same program again and again on one rank: never traced, traced, not traced any more.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(ExecutorTrace, AllocatesNothing) {
  const Plan plan{{1, 1, 1}, 1, 4, ScheduleName::interleaved_1f1b};
  toy::Parameters parameters = toy::Parameters::random(plan.split().begin.back(), 5);
  const ChunkSplit split = plan.split();
  const BlockLayout blocks = plan.blocks();
  const BlockRoutes routes = make_block_routes(split, blocks, 1, BlockTransport::cached);
  const Program program = lower(plan.schedule(), plan.num_chunks());
  const auto comm = comm::make_self_communicator();
  toy::Rank runner(split, blocks, routes, parameters);
  Executor executor(*comm, runner, plan.num_chunks());
  Stream stream;
  const auto allocations = [&] {
    const int64_t before = num_allocations;
    executor.run(program[0], stream);
    return num_allocations - before;
  };
  allocations();  // the first run grows what later ones keep
  const int64_t never = allocations();
  EXPECT_GT(never, 0) << "the toy's own: the counter counts";
  Recorder recorder(trace::Clock::now());
  executor.set_trace(&recorder);
  EXPECT_EQ(allocations(), never);
  EXPECT_EQ(recorder.spans().size(), program[0].size());
  executor.set_trace(nullptr);
  EXPECT_EQ(allocations(), never);
  EXPECT_EQ(recorder.spans().size(), program[0].size());
}
#endif

}  // namespace
}  // namespace lamina::pipeline
