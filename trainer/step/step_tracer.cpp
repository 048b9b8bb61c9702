#include "trainer/step/step_tracer.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/base/here.h"
#include "core/base/log.h"
#include "core/io/file.h"
#include "parallel/comm/agreement.h"
#include "trainer/record/metrics.h"
#include "trainer/record/pipeline_stats.h"
#include "trainer/record/trace_file.h"

namespace lamina {
namespace {

using trace::Clock;

constexpr int clock_tag = 7501;
constexpr int num_clock_rounds = 12;

double seconds_of(Clock::time_point time) {
  return std::chrono::duration<double>(time.time_since_epoch()).count();
}

TensorView view_of(double& value) {
  return {&value, DType::f64, {1}};
}

// Rank 0's answers: its time, as often as a rank asks.
void answer(comm::Communicator& comm, int rank, Stream& stream) {
  for (int round = 0; round < num_clock_rounds; ++round) {
    double time = 0;
    comm.recv(view_of(time), rank, clock_tag, stream).wait();
    time = seconds_of(Clock::now());
    comm.send(view_of(time), rank, clock_tag, stream).wait();
  }
}

struct ClockOffset {
  double seconds = 0;  // this clock less rank 0's
  double error = 0;
};

ClockOffset ask(comm::Communicator& comm, Stream& stream) {
  ClockOffset best{0, std::numeric_limits<double>::infinity()};
  for (int round = 0; round < num_clock_rounds; ++round) {
    double theirs = 0;
    const double sent = seconds_of(Clock::now());
    comm.send(view_of(theirs), 0, clock_tag, stream).wait();
    comm.recv(view_of(theirs), 0, clock_tag, stream).wait();
    const double received = seconds_of(Clock::now());
    const double error = (received - sent) / 2;
    if (error < best.error) best = {sent + error - theirs, error};
  }
  if (std::abs(best.seconds) <= best.error) best.seconds = 0;
  return best;
}

// What the executor counts, from the recorded actions.
pipeline::ExecutionReport report_of(const std::vector<trace::Span>& spans, int num_pipeline_ranks, int num_chunks) {
  static constexpr std::string_view kinds[] = {"F", "B", "Bi", "W"};
  pipeline::ExecutionReport report;
  report.costs.resize(static_cast<size_t>(num_chunks / num_pipeline_ranks));
  for (const trace::Span& span : spans) {
    if (span.track != trace::Track::compute) continue;
    const auto kind = std::find(std::begin(kinds), std::end(kinds), span.name) - std::begin(kinds);
    report.add({span.chunk, static_cast<pipeline::ActionKind>(kind), span.microbatch}, num_pipeline_ranks,
               span.end - span.begin);
  }
  return report;
}

double first_action(const std::vector<trace::Span>& spans) {
  double first = std::numeric_limits<double>::infinity();
  for (const trace::Span& span : spans)
    if (span.track == trace::Track::compute) first = std::min(first, span.begin);
  return first;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) {
    if (part.empty()) continue;
    if (!all.empty()) all += ",\n";
    all += part;
  }
  return all;
}

}  // namespace

StepTracer::StepTracer(const Config& config, comm::Communicator& comm, std::filesystem::path folder)
    : config_(config), comm_(comm), folder_(std::move(folder)) {}

void StepTracer::begin(int64_t step, Engine& engine) {
  recorder_.reset();  // of a step that came to nothing
  const std::vector<int64_t>& steps = config_.logging.trace_steps;
  if (std::find(steps.begin(), steps.end(), step) == steps.end()) return;
  step_ = step;
  engine.context().stream.synchronize();
  align_clocks();
  engine.set_trace(&*recorder_);
}

void StepTracer::align_clocks() {
  Stream stream;
  comm_.barrier();
  ClockOffset offset;
  if (comm_.rank() == 0) {
    for (int rank = 1; rank < comm_.size(); ++rank) answer(comm_, rank, stream);
  } else {
    offset = ask(comm_, stream);
  }
  comm_.barrier();
  // Nobody goes on before it knows the origin, so nothing begins before it.
  double origin = seconds_of(Clock::now());
  comm_.broadcast(view_of(origin), 0, stream).wait();
  clock_error_ = offset.error;
  const auto since_epoch = std::chrono::duration<double>(origin + offset.seconds);
  recorder_.emplace(Clock::time_point(std::chrono::duration_cast<Clock::duration>(since_epoch)));
}

void StepTracer::release(Engine& engine) {
  if (recorder_) engine.set_trace(nullptr);
}

void StepTracer::finish(const Engine& engine) {
  if (!recorder_) return;
  const std::vector<trace::Span>& spans = recorder_->spans();
  const mesh::MeshShape& mesh = engine.mesh();
  const mesh::Coordinates& place = engine.place();
  const MeasuredCosts measured = measured_costs(comm_, report_of(spans, mesh.pipeline, engine.plan().num_chunks()),
                                                place.pp_rank, engine.plan().num_chunks(), mesh.data);
  double begin = first_action(spans);
  Stream stream;
  comm_.all_reduce(view_of(begin), comm::ReduceOp::min, stream).wait();

  const RankTrace mine = trace_of_rank(
      comm_.rank(),
      fmt::format("rank {} ({}, pipeline {}, data {})", comm_.rank(), host_name(), place.pp_rank, place.dp_rank),
      spans);
  const std::vector<std::string> events = gather_text(comm_, mine.events), actions = gather_text(comm_, mine.actions);
  std::vector<double> errors(static_cast<size_t>(comm_.size())), dropped(errors.size());
  errors[static_cast<size_t>(comm_.rank())] = clock_error_;
  dropped[static_cast<size_t>(comm_.rank())] = static_cast<double>(recorder_->num_dropped());
  for (std::vector<double>* values : {&errors, &dropped})
    comm_.all_reduce({values->data(), DType::f64, {comm_.size()}}, comm::ReduceOp::sum, stream).wait();
  recorder_.reset();

  run_and_agree(comm_, [&] {
    if (comm_.rank() != 0) return;
    const RankTrace simulated = trace_of_simulation(
        engine.schedule(), pipeline::simulate(engine.schedule(), measured.costs), begin, comm_.size());
    std::string lamina = JsonRow()
                             .add("version", 1)
                             .add("step", step_)
                             .add("ranks", comm_.size())
                             .add("pipeline", mesh.pipeline)
                             .add("data", mesh.data)
                             .add("schedule", name_of(config_.parallel.schedule))
                             .add("clock_error", std::span<const double>(errors))
                             .add("dropped_spans", std::span<const double>(dropped))
                             .to_string();
    lamina.pop_back();
    const std::filesystem::path path = folder_ / fmt::format("step-{:08}.json", step_);
    std::filesystem::create_directories(folder_);
    io::write_file_atomically(
        path, fmt::format("{{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n{},\n{}\n],\n\"lamina\": {},\n\"real\": "
                          "[\n{}\n],\n\"simulated\": [\n{}\n]}}}}\n",
                          joined(events), simulated.events, lamina, joined(actions), simulated.actions));
    log::info("traced step {}: {}", step_, path.string());
  });
}

}  // namespace lamina
