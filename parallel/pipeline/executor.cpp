#include "parallel/pipeline/executor.h"

#include <algorithm>
#include <utility>

#include "core/base/clock.h"
#include "core/base/error.h"

namespace lamina::pipeline {

namespace {

// A hop's two directions have a tag each, named by the chunk that receives, so that messages between the same two ranks match
// by chunk; micro-batches of a chunk come in order.
int tag_of(int receiving_chunk, bool is_backward) {
  return 2 * receiving_chunk + (is_backward ? 1 : 0);
}

// As a trace's reader knows the kinds.
const char* trace_name(ActionKind kind) {
  switch (kind) {
    case ActionKind::forward:
      return "F";
    case ActionKind::backward:
      return "B";
    case ActionKind::backward_input:
      return "Bi";
    case ActionKind::backward_weight:
      return "W";
  }
  return "";
}

bool same_work(const Step& step, StepKind kind, const Action& action) {
  return step.kind == kind && step.action.chunk == action.chunk && step.action.microbatch == action.microbatch;
}

}  // namespace

Executor::Executor(comm::Communicator& comm, ChunkRunner& runner, int num_chunks)
    : comm_(comm), runner_(runner), num_chunks_(num_chunks) {
  LAMINA_CHECK(num_chunks >= 1 && num_chunks % comm.size() == 0, "{} chunks on {} ranks", num_chunks, comm.size());
}

std::vector<comm::Channel> Executor::channels_of(const std::vector<Step>& steps) const {
  std::vector<comm::Channel> channels;
  for (const Step& step : steps) {
    if (step.kind == StepKind::compute) continue;
    const bool is_send = step.kind == StepKind::send_forward || step.kind == StepKind::send_backward;
    const bool is_backward = step.kind == StepKind::send_backward || step.kind == StepKind::receive_backward;
    const int chunk = step.action.chunk, other = chunk + (is_send == is_backward ? -1 : 1);
    const comm::Channel channel{is_send, other % comm_.size(), tag_of(is_send ? other : chunk, is_backward)};
    if (std::find(channels.begin(), channels.end(), channel) == channels.end()) channels.push_back(channel);
  }
  return channels;
}

ExecutionReport Executor::run(const std::vector<Step>& steps, Stream& stream) {
  // Destroyed by an exception, pending requests are given up and not waited for; the peers may never come. That holds only
  // while the stack unwinds, not once a handler runs.
  struct GiveUp {
    Executor& executor;
    ~GiveUp() {
      executor.receiving_.clear();
      executor.sending_.clear();
    }
  } const give_up{*this};

  ExecutionReport report;
  report.costs.resize(static_cast<size_t>(num_chunks_ / comm_.size()));
  last_microbatch_.assign(report.costs.size(), {-1, -1, -1, -1, -1});
  num_spans_ = 0;
  if (trace_ != nullptr) begin_trace(stream);
  const auto start = Clock::now();
  for (const Step& step : steps) {
    if (before_step) before_step(step);
    const int chunk = step.action.chunk;
    LAMINA_CHECK(chunk >= 0 && chunk < num_chunks_ && chunk % comm_.size() == comm_.rank(), "{} on rank {} of {}",
                 to_string(step), comm_.rank(), comm_.size());
    switch (step.kind) {
      case StepKind::compute:
        compute(step.action, stream, report);
        break;
      case StepKind::receive_forward:
      case StepKind::receive_backward:
        post_receive(step, stream);
        break;
      case StepKind::send_forward:
      case StepKind::send_backward:
        start_send(step, stream, report);
        break;
    }
    retire_sends(false);
  }
  LAMINA_CHECK(receiving_.empty(), "{} was posted and never used", to_string(receiving_.front().step));
  retire_sends(true);
  if (stream.device().kind != DeviceKind::cpu) add_gpu_times(stream, report);
  report.seconds = seconds_since(start);
  return report;
}

void Executor::progress() {
  retire_sends(false);
  if (!sending_.empty()) return;
  // One test of a pending request moves all of them.
  for (Transfer& transfer : receiving_) {
    for (comm::Request& request : transfer.requests)
      if (!request.test()) return;
    end_span(transfer);
  }
}

// Where a GPU computes, its own clock says when: a point of its stream is tied to the recorder's clock.
void Executor::begin_trace(Stream& stream) {
  if (stream.device().kind == DeviceKind::cpu) return;
  stream.synchronize();
  trace_origin_.record(stream);
  stream.synchronize();
  trace_origin_seconds_ = trace_->now();
}

// After the transfer's requests were issued; the peer's rank is that of the pipeline.
void Executor::begin_span(Transfer& transfer, trace::Track track, int peer) const {
  if (trace_ == nullptr) return;
  trace::Span span;
  span.track = track;
  span.name = transfer.step.action.kind == ActionKind::forward ? "F" : "B";
  span.chunk = transfer.step.action.chunk;
  span.microbatch = transfer.step.action.microbatch;
  span.peer = peer;
  span.summary_bytes = 0;
  for (const TensorView& summary : views_.summaries) span.summary_bytes += summary.num_bytes();
  span.bytes = views_.stream.num_bytes() + span.summary_bytes;
  transfer.span = trace_->open(span);
}

void Executor::end_span(Transfer& transfer) const {
  if (transfer.span == no_span) return;
  trace_->close(std::exchange(transfer.span, no_span));
}

void Executor::trace_action(const Action& action, double begin, double end) const {
  trace::Span span;
  span.track = trace::Track::compute;
  span.name = trace_name(action.kind);
  span.chunk = action.chunk;
  span.microbatch = action.microbatch;
  span.begin = begin;
  span.end = end;
  trace_->add(span);
}

void Executor::check_order(const Step& step) {
  const auto local = static_cast<size_t>(step.action.chunk / comm_.size());
  int& last = last_microbatch_[local][static_cast<size_t>(step.kind)];
  LAMINA_CHECK(step.action.microbatch > last, "{} after micro-batch {}: messages of a chunk go in ascending order",
               to_string(step), last);
  last = step.action.microbatch;
}

void Executor::post_receive(const Step& step, Stream& stream) {
  const bool is_backward = step.kind == StepKind::receive_backward;
  const int chunk = step.action.chunk, source_chunk = is_backward ? chunk + 1 : chunk - 1;
  LAMINA_CHECK(comm_.size() > 1 && source_chunk >= 0 && source_chunk < num_chunks_, "{}: chunk {} of {} on {} ranks",
               to_string(step), source_chunk, num_chunks_, comm_.size());
  for (const Transfer& pending : receiving_)
    LAMINA_CHECK(!same_work(pending.step, step.kind, step.action), "{} is posted twice", to_string(step));
  check_order(step);
  views_.stream = {};
  views_.summaries.clear();
  if (is_backward) {
    runner_.receive_backward(chunk, step.action.microbatch, views_);
  } else {
    runner_.receive_forward(chunk, step.action.microbatch, views_);
  }
  Transfer& transfer = receiving_.emplace_back(Transfer{step, {}});
  const int source = source_chunk % comm_.size(), tag = tag_of(chunk, is_backward);
  begin_span(transfer, trace::Track::receives, source);
  transfer.requests.push_back(comm_.recv(views_.stream, source, tag, stream));
  for (const TensorView& summary : views_.summaries)
    transfer.requests.push_back(comm_.recv(summary, source, tag, stream));
}

void Executor::start_send(const Step& step, Stream& stream, ExecutionReport& report) {
  check_order(step);
  const bool is_backward = step.kind == StepKind::send_backward;
  const int chunk = step.action.chunk, target_chunk = is_backward ? chunk - 1 : chunk + 1;
  LAMINA_CHECK(comm_.size() > 1 && target_chunk >= 0 && target_chunk < num_chunks_, "{}: chunk {} of {} on {} ranks",
               to_string(step), target_chunk, num_chunks_, comm_.size());
  views_.stream = {};
  views_.summaries.clear();
  if (is_backward) {
    runner_.send_backward(chunk, step.action.microbatch, views_);
  } else {
    runner_.send_forward(chunk, step.action.microbatch, views_);
  }
  Transfer& transfer = sending_.emplace_back(Transfer{step, {}});
  const int target = target_chunk % comm_.size(), tag = tag_of(target_chunk, is_backward);
  begin_span(transfer, trace::Track::sends, target);
  transfer.requests.push_back(comm_.send(views_.stream, target, tag, stream));
  report.stream_bytes_sent += views_.stream.num_bytes();
  for (const TensorView& summary : views_.summaries) {
    transfer.requests.push_back(comm_.send(summary, target, tag, stream));
    report.summary_bytes_sent += summary.num_bytes();
  }
}

void Executor::wait_for(const Action& action) {
  if (comm_.size() == 1 || action.kind == ActionKind::backward_weight) return;
  const bool is_forward = action.kind == ActionKind::forward;
  if (action.chunk == (is_forward ? 0 : num_chunks_ - 1)) return;
  const StepKind kind = is_forward ? StepKind::receive_forward : StepKind::receive_backward;
  const auto found = std::find_if(receiving_.begin(), receiving_.end(),
                                  [&](const Transfer& pending) { return same_work(pending.step, kind, action); });
  LAMINA_CHECK(found != receiving_.end(), "{} has no receive posted", to_string(action));
  if (trace_ == nullptr) {
    for (comm::Request& request : found->requests) request.wait();
  } else {
    trace::Span wait;
    wait.track = trace::Track::waiting;
    wait.name = is_forward ? "F" : "B";
    wait.chunk = action.chunk;
    wait.microbatch = action.microbatch;
    const int64_t span = trace_->open(wait);
    for (comm::Request& request : found->requests) request.wait();
    trace_->close(span);
    end_span(*found);
  }
  receiving_.erase(found);
}

void Executor::retire_sends(bool all) {
  for (auto transfer = sending_.begin(); transfer != sending_.end();) {
    bool done = true;
    for (comm::Request& request : transfer->requests) {
      if (all) request.wait();
      done = done && request.test();
    }
    if (!done) {
      ++transfer;
      continue;
    }
    end_span(*transfer);
    const Step step = transfer->step;
    transfer = sending_.erase(transfer);
    if (step.kind == StepKind::send_forward) {
      runner_.sent_forward(step.action.chunk, step.action.microbatch);
    } else {
      runner_.sent_backward(step.action.chunk, step.action.microbatch);
    }
  }
}

void Executor::compute(const Action& action, Stream& stream, ExecutionReport& report) {
  wait_for(action);
  const bool on_gpu = stream.device().kind != DeviceKind::cpu;
  if (on_gpu) begin_on_gpu(stream);
  const auto start = Clock::now();
  runner_.run(action);
  if (!on_gpu) {
    const double seconds = seconds_since(start);
    report.add(action, comm_.size(), seconds);
    if (trace_ != nullptr) {
      const double end = trace_->now();
      trace_action(action, end - seconds, end);
    }
    return;
  }
  spans_[num_spans_].end.record(stream);
  spans_[num_spans_++].action = action;
}

// The host tells a GPU what to do long before it is done. Were it to run a whole step ahead, each message would need memory of its
// own, because none is known to have been sent.
void Executor::begin_on_gpu(Stream& stream) {
  constexpr size_t actions_ahead = 2;
  if (num_spans_ >= actions_ahead) {
    spans_[num_spans_ - actions_ahead].end.wait(stream);
    retire_sends(false);
  }
  if (num_spans_ == spans_.size()) spans_.emplace_back();
  spans_[num_spans_].begin.record(stream);
}

void Executor::add_gpu_times(Stream& stream, ExecutionReport& report) {
  stream.synchronize();
  double last_end = 0;  // the clock's float milliseconds may let neighbours overlap
  for (size_t i = 0; i < num_spans_; ++i) {
    const Span& span = spans_[i];
    const double seconds = span.end.seconds_since(span.begin);
    report.add(span.action, comm_.size(), seconds);
    if (trace_ == nullptr) continue;
    const double begin = std::max(last_end, trace_origin_seconds_ + span.begin.seconds_since(trace_origin_));
    last_end = begin + seconds;
    trace_action(span.action, begin, last_end);
  }
}

void ExecutionReport::add(const Action& action, int num_ranks, double action_seconds) {
  busy_seconds += action_seconds;
  Cost& cost = costs[static_cast<size_t>(action.chunk / num_ranks)][static_cast<size_t>(action.kind)];
  cost.seconds += action_seconds;
  ++cost.count;
}

}  // namespace lamina::pipeline
