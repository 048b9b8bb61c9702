#include "parallel/pipeline/executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <mutex>
#include <random>

#include "parallel/comm/thread.h"
#include "tests/parallel/pipeline/toy_model.h"

namespace lamina::pipeline {
namespace {

using ::testing::HasSubstr;
using toy::Fault;
using toy::Parameters;

struct Layout {
  int num_ranks = 1;
  std::vector<int64_t> layers;
  int64_t block_size = 1;  // 0: full_attnres
  int num_microbatches = 1;
  ScheduleName schedule = ScheduleName::gpipe;
  BlockTransport transport = BlockTransport::cached;

  int num_chunks() const { return static_cast<int>(layers.size()); }
  ChunkSplit split() const { return make_chunk_split(layers); }
  BlockLayout blocks() const {
    ModelConfig config;
    config.num_hidden_layers = split().begin.back() / 2;
    config.residual = block_size == 0 ? Residual::full_attnres : Residual::block_attnres;
    config.attn_res_block_size = block_size;
    return make_block_layout(config);
  }
  BlockRoutes routes() const { return make_block_routes(split(), blocks(), num_ranks, transport); }
  std::string name() const {
    std::string text =
        fmt::format("{} ranks, block {}, {} micro-batches, schedule {}, transport {}, layers", num_ranks, block_size,
                    num_microbatches, static_cast<int>(schedule), static_cast<int>(transport));
    for (const int64_t count : layers) text += fmt::format(" {}", count);
    return text;
  }
};

struct Result {
  double loss = 0;
  Parameters gradients;
  int64_t stream_bytes = 0, summary_bytes = 0;
  std::vector<int> peaks;
};

struct Options {
  int faulty_rank = -1;
  Fault fault = Fault::none;
  const BlockRoutes* routes = nullptr;
  const Program* program = nullptr;
  int failing_rank = -1, failing_step = 0;
  double timeout_seconds = 60;
};

void check_report(const ExecutionReport& report, const std::vector<Step>& steps, const Layout& layout) {
  std::vector<std::array<int64_t, 4>> expected(layout.layers.size() / static_cast<size_t>(layout.num_ranks));
  for (const Step& step : steps)
    if (step.kind == StepKind::compute)
      ++expected[static_cast<size_t>(step.action.chunk / layout.num_ranks)][static_cast<size_t>(step.action.kind)];
  double seconds = 0;
  ASSERT_EQ(report.costs.size(), expected.size());
  for (size_t v = 0; v < expected.size(); ++v)
    for (size_t kind = 0; kind < 4; ++kind) {
      EXPECT_EQ(report.costs[v][kind].count, expected[v][kind]);
      seconds += report.costs[v][kind].seconds;
    }
  EXPECT_NEAR(seconds, report.busy_seconds, 1e-9 + 1e-12 * static_cast<double>(steps.size()));
  EXPECT_LE(report.busy_seconds, report.seconds);
}

Result run(const Layout& layout, Parameters& parameters, const Options& options = {}) {
  const ChunkSplit split = layout.split();
  const BlockLayout blocks = layout.blocks();
  const BlockRoutes routes = options.routes ? *options.routes : layout.routes();
  const Schedule schedule =
      make_schedule(layout.schedule, layout.num_ranks, layout.num_chunks(), layout.num_microbatches);
  const Program program = options.program ? *options.program : lower(schedule, layout.num_chunks());
  Result result;
  result.gradients = Parameters::zero(split.begin.back());
  result.peaks.resize(static_cast<size_t>(layout.num_ranks));
  std::mutex mutex;
  comm::CommunicatorOptions comm_options;
  comm_options.timeout_seconds = options.timeout_seconds;
  comm::run_threads(
      layout.num_ranks,
      [&](comm::Communicator& comm) {
        toy::Rank runner(split, blocks, routes, parameters);
        if (comm.rank() == options.faulty_rank) runner.fault = options.fault;
        Executor executor(comm, runner, layout.num_chunks());
        runner.during_run = [&] { executor.progress(); };
        if (comm.rank() == options.failing_rank)
          executor.before_step = [count = 0, &options](const Step& step) mutable {
            if (count++ == options.failing_step) throw Error("killed before {}", to_string(step));
          };
        Stream stream;
        const auto& steps = program[static_cast<size_t>(comm.rank())];
        const ExecutionReport report = executor.run(steps, stream);
        const std::lock_guard lock(mutex);
        check_report(report, steps, layout);
        EXPECT_EQ(runner.num_left(), 0U) << "rank " << comm.rank();
        EXPECT_EQ(report.stream_bytes_sent + report.summary_bytes_sent, comm.take_bytes_sent());
        result.loss += runner.loss();
        result.stream_bytes += report.stream_bytes_sent;
        result.summary_bytes += report.summary_bytes_sent;
        result.peaks[static_cast<size_t>(comm.rank())] = runner.peak();
        const std::vector<toy::Vec*> from = runner.gradients().all(), to = result.gradients.all();
        for (size_t i = 0; i < from.size(); ++i) toy::add(*to[i], *from[i]);
      },
      comm_options);
  return result;
}

double difference(Result& a, Result& b) {
  double worst = std::abs(a.loss - b.loss) / std::abs(b.loss);
  const std::vector<toy::Vec*> left = a.gradients.all(), right = b.gradients.all();
  for (size_t i = 0; i < left.size(); ++i) {
    double square = 0, norm = 0;
    for (size_t k = 0; k < left[i]->size(); ++k) {
      square += std::pow((*left[i])[k] - (*right[i])[k], 2);
      norm += std::pow((*right[i])[k], 2);
    }
    if (!(square >= 0)) return std::numeric_limits<double>::infinity();  // NaN
    worst = std::max(worst, std::sqrt(square) / std::max(std::sqrt(norm), 1e-9));
  }
  return worst;
}

Layout one_rank(const Layout& layout) {
  Layout one = layout;
  one.num_ranks = 1;
  one.layers = {layout.split().begin.back() / 2};
  one.schedule = ScheduleName::gpipe;
  return one;
}

constexpr int64_t message_bytes = toy::elements * 8;

void expect_equal_to_one_rank(const Layout& layout) {
  SCOPED_TRACE(layout.name());
  Parameters parameters = Parameters::random(layout.split().begin.back(), 5);
  Result reference = run(one_rank(layout), parameters);
  Result result = run(layout, parameters);
  // 1e-12: a few hundred roundings of 1e-16 in sums of like size.
  ASSERT_LT(difference(result, reference), 1e-12);
  const int64_t num_messages = 2 * layout.num_microbatches;  // per hop
  const int64_t num_hops = layout.num_ranks == 1 ? 0 : layout.num_chunks() - 1;
  EXPECT_EQ(result.stream_bytes, num_messages * num_hops * message_bytes);
  EXPECT_EQ(result.summary_bytes, num_messages * layout.routes().num_sent() * message_bytes);
  const Schedule schedule =
      make_schedule(layout.schedule, layout.num_ranks, layout.num_chunks(), layout.num_microbatches);
  EXPECT_EQ(result.peaks, peak_summaries(layout.routes(), schedule));
}

// The hand-written backward, against finite differences.
TEST(ToyModel, GradientsOfOneRank) {
  Layout layout{1, {3}, 2, 2};
  Parameters parameters = Parameters::random(6, 9);
  Result result = run(layout, parameters);
  const std::vector<toy::Vec*> values = parameters.all(), gradients = result.gradients.all();
  for (size_t i = 0; i < values.size(); ++i)
    for (size_t k = 0; k < values[i]->size(); ++k) {
      const double step = 1e-5, before = (*values[i])[k];
      (*values[i])[k] = before + step;
      const double above = run(layout, parameters).loss;
      (*values[i])[k] = before - step;
      const double below = run(layout, parameters).loss;
      (*values[i])[k] = before;
      // step^2 times the third derivative, and the loss's rounding over the step.
      EXPECT_NEAR((*gradients[i])[k], (above - below) / (2 * step), 1e-6) << "tensor " << i << ", element " << k;
    }
}

TEST(Executor, EveryLayoutEqualsOneRank) {
  std::mt19937 random(17);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int num_ranks = 1; num_ranks <= 4; ++num_ranks)
    for (int chunks_per_rank = 1; chunks_per_rank <= 4; ++chunks_per_rank)
      for (int num_microbatches = 1; num_microbatches <= 5; ++num_microbatches)
        for (const ScheduleName schedule : {ScheduleName::gpipe, ScheduleName::one_f_one_b,
                                            ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble}) {
          if (schedule == ScheduleName::one_f_one_b && chunks_per_rank > 1) continue;
          for (const BlockTransport transport : {BlockTransport::cached, BlockTransport::full}) {
            Layout layout{num_ranks, {}, draw(0, 3), num_microbatches, schedule, transport};
            for (int c = 0; c < num_ranks * chunks_per_rank; ++c) layout.layers.push_back(draw(1, 2));
            if (layout.num_chunks() > 2 && draw(0, 3) == 0) layout.layers.front() = 0;
            if (layout.num_chunks() > 2 && draw(0, 3) == 0) layout.layers.back() = 0;
            expect_equal_to_one_rank(layout);
            if (HasFatalFailure()) return;
          }
        }
}

TEST(Executor, ForwardOnlyGivesTheLossAndSendsNoGradients) {
  const Layout layout{2, {1, 2, 1, 1}, 1, 3};
  Parameters parameters = Parameters::random(10, 5);
  const double expected = run(one_rank(layout), parameters).loss;
  const ChunkSplit split = layout.split();
  const BlockLayout blocks = layout.blocks();
  const BlockRoutes routes = layout.routes();
  const Program program = lower(forward_schedule(2, 4, 3), 4);
  comm::run_threads(2, [&](comm::Communicator& comm) {
    toy::Rank runner(split, blocks, routes, parameters);
    Executor executor(comm, runner, 4);
    Stream stream;
    for (int pass = 0; pass < 2; ++pass) {
      runner.forget_forward_pass();
      const ExecutionReport report = executor.run(program[static_cast<size_t>(comm.rank())], stream);
      int64_t num_sent = 0;
      for (int c = comm.rank(); c < 4; c += 2)
        num_sent += static_cast<int64_t>(routes.chunks[static_cast<size_t>(c)].sent.size());
      EXPECT_EQ(report.summary_bytes_sent, 3 * num_sent * message_bytes);
      EXPECT_EQ(report.stream_bytes_sent, 3 * (comm.rank() == 0 ? 2 : 1) * message_bytes);
    }
    EXPECT_NEAR(runner.loss(), comm.rank() == 1 ? 2 * expected : 0, 1e-12 * expected);
  });
}

// ---- faults ----

const Layout four_by_two{4, {1, 1, 1, 1, 1, 1, 1, 1}, 1, 3, ScheduleName::interleaved_1f1b, BlockTransport::cached};

TEST(ExecutorFaults, AWrongGradientIsSeen) {
  Parameters parameters = Parameters::random(16, 5);
  Result reference = run(one_rank(four_by_two), parameters);
  for (const Fault fault : {Fault::drop_deposit, Fault::double_deposit, Fault::drop_kept_gradient}) {
    for (int rank = 0; rank < 4; ++rank) {
      if (fault == Fault::drop_kept_gradient && rank == 3) continue;  // its last block is read by nobody else there
      Result result = run(four_by_two, parameters, {.faulty_rank = rank, .fault = fault});
      EXPECT_GT(difference(result, reference), 1e-9) << "fault " << static_cast<int>(fault) << " on rank " << rank;
    }
  }
}

std::string failure_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& failure) {
    return failure.what();
  }
  return "nothing was thrown";
}

TEST(ExecutorFaults, AWrongRouteIsSeen) {
  Parameters parameters = Parameters::random(16, 5);
  const auto message = [&](const BlockRoutes& routes) {
    return failure_of([&] { run(four_by_two, parameters, {.routes = &routes, .timeout_seconds = 5}); });
  };
  BlockRoutes routes = four_by_two.routes();
  // Neither end knows of the summary: its reader has none.
  std::erase(routes.chunks[3].sent, 2);
  std::erase(routes.chunks[4].received, 2);
  EXPECT_THAT(message(routes), HasSubstr("rank 0"));
  routes = four_by_two.routes();
  routes.chunks[0].keeps_leaving = false;
  EXPECT_THAT(message(routes), HasSubstr("rank 0"));
  // Two summaries change names on one end: the bytes fit, but what chunk 5 gets as summary 3 is number 2, again.
  routes = four_by_two.routes();
  std::swap(routes.chunks[4].received[0], routes.chunks[4].received[1]);
  EXPECT_THAT(failure_of([&] { validate(routes, four_by_two.split(), four_by_two.blocks()); }),
              HasSubstr("out of order"));
  Result reference = run(one_rank(four_by_two), parameters);
  Result result = run(four_by_two, parameters, {.routes = &routes});
  EXPECT_GT(difference(result, reference), 1e-6);
}

TEST(ExecutorFaults, SwappedActionsAreSeen) {
  Parameters parameters = Parameters::random(16, 5);
  const Schedule schedule = make_schedule(four_by_two.schedule, 4, 8, 3);
  const Program good = lower(schedule, 8);
  // A backward before its forward: the executor or the runner has nothing to work on.
  for (size_t rank = 0; rank < 4; ++rank) {
    Program program = good;
    std::vector<Step>& steps = program[rank];
    const auto first = [&](ActionKind kind) {
      return std::find_if(steps.begin(), steps.end(), [&](const Step& step) {
        return step.kind == StepKind::compute && step.action.kind == kind && step.action.microbatch == 0;
      });
    };
    std::iter_swap(first(ActionKind::forward), first(ActionKind::backward));
    EXPECT_THAT(failure_of([&] { validate(program, 8); }), testing::Ne("nothing was thrown"));
    const std::string message =
        failure_of([&] { run(four_by_two, parameters, {.program = &program, .timeout_seconds = 2}); });
    EXPECT_THAT(message, HasSubstr(fmt::format("rank {}", rank)));
  }
}

// ---- misuse of the executor itself ----

class NoRunner final : public ChunkRunner {
 public:
  void run(const Action&) override {}
  void receive_forward(int, int, HopViews& views) override { views.stream = toy::view(room); }
  void send_forward(int, int, HopViews& views) override { views.stream = toy::view(room); }
  void sent_forward(int, int) override {}
  void receive_backward(int, int, HopViews& views) override { views.stream = toy::view(room); }
  void send_backward(int, int, HopViews& views) override { views.stream = toy::view(room); }
  void sent_backward(int, int) override {}
  toy::Vec room = toy::zeros();
};

std::string failure_on_rank_1(const std::vector<Step>& steps, int num_ranks = 2) {
  return failure_of([&] {
    comm::run_threads(num_ranks, [&](comm::Communicator& comm) {
      if (comm.rank() + 1 < num_ranks) return;
      NoRunner runner;
      Executor executor(comm, runner, 2 * num_ranks);
      Stream stream;
      executor.run(steps, stream);
    });
  });
}

TEST(ExecutorFaults, ImpossibleStepsAreRefused) {
  using enum StepKind;
  constexpr ActionKind forward = ActionKind::forward;
  EXPECT_THAT(failure_on_rank_1({{compute, {0, forward, 0}}}), HasSubstr("0F0 on rank 1 of 2"));
  EXPECT_THAT(failure_on_rank_1({{compute, {5, forward, 0}}}), HasSubstr("5F0 on rank 1 of 2"));
  EXPECT_THAT(failure_on_rank_1({{compute, {1, forward, 0}}}), HasSubstr("1F0 has no receive posted"));
  EXPECT_THAT(failure_on_rank_1({{send_forward, {3, forward, 0}}}), HasSubstr("chunk 4 of 4"));
  EXPECT_THAT(failure_on_rank_1({{receive_backward, {3, forward, 0}}}), HasSubstr("chunk 4 of 4"));
  const Step receive{receive_forward, {1, forward, 0}};
  EXPECT_THAT(failure_on_rank_1({receive, receive}), HasSubstr("is posted twice"));
  EXPECT_THAT(failure_on_rank_1({{receive_forward, {1, forward, 1}}, receive}), HasSubstr("in ascending order"));
  EXPECT_THAT(failure_on_rank_1({receive}), HasSubstr("was posted and never used"));
  EXPECT_THAT(failure_on_rank_1({{send_forward, {0, forward, 0}}}, 1), HasSubstr("on 1 ranks"));
  const auto self = comm::make_self_communicator();
  NoRunner runner;
  EXPECT_THROW(Executor(*self, runner, 0), InternalError);
}

TEST(ExecutorFaults, AFailureAtAnyStepEndsTheJobAtOnce) {
  Parameters parameters = Parameters::random(16, 5);
  for (const ScheduleName schedule : {ScheduleName::interleaved_1f1b, ScheduleName::zero_bubble}) {
    Layout layout = four_by_two;
    layout.schedule = schedule;
    const Program program = lower(make_schedule(schedule, 4, 8, 3), 8);
    for (int rank = 0; rank < 4; ++rank) {
      const auto num_steps = static_cast<int>(program[static_cast<size_t>(rank)].size());
      for (int step = 0; step < num_steps; step += 5) {
        const auto start = std::chrono::steady_clock::now();
        const std::string message = failure_of(
            [&] { run(layout, parameters, {.program = &program, .failing_rank = rank, .failing_step = step}); });
        EXPECT_THAT(message, HasSubstr(fmt::format("rank {}: killed before", rank)));
        EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
      }
    }
  }
}

TEST(ExecutorFaults, ATransferInFlightIsGivenUpBeforeTheExceptionLeaves) {
  const auto start = std::chrono::steady_clock::now();
  const std::string message = failure_of([&] {
    comm::run_threads(2, [&](comm::Communicator& comm) {
      if (comm.rank() == 0) return;  // never sends
      Stream stream;
      auto runner = std::make_unique<NoRunner>();
      Executor executor(comm, *runner, 2);
      executor.before_step = [](const Step& step) {
        if (step.kind == StepKind::compute) throw Error("stop");
      };
      const std::vector<Step> steps{{StepKind::receive_forward, {1, ActionKind::forward, 0}},
                                    {StepKind::compute, {1, ActionKind::forward, 0}}};
      EXPECT_THAT(failure_of([&] { executor.run(steps, stream); }), "stop");
      // Nobody writes to the runner's memory any more, and nothing waits here; the communicator is of no more use.
      executor.before_step = {};
      executor.run(steps, stream);
    });
  });
  EXPECT_THAT(message, HasSubstr("recv was given up"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

}  // namespace
}  // namespace lamina::pipeline
