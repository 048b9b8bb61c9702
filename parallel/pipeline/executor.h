// Runs one rank's lowered program: a small loop over steps. It knows chunks only through ChunkRunner and messages only as
// views. Every transfer is non-blocking; a wait happens only where a compute step needs what it receives.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/base/trace.h"
#include "parallel/comm/communicator.h"
#include "parallel/pipeline/schedule.h"

namespace lamina::pipeline {

// What one hop carries for one micro-batch: the hidden stream first (it is on the critical path), then each summary as its own
// message, in the order of the routes.
struct HopViews {
  TensorView stream;
  std::vector<TensorView> summaries;
};

// A rank's chunks. All views stay valid until the matching call below says otherwise; a call per (chunk, micro-batch).
// sent_forward() and sent_backward() come between two steps, or from inside run() when that calls Executor::progress().
class ChunkRunner {
 public:
  virtual ~ChunkRunner() = default;
  virtual void run(const Action& action) = 0;

  // Where the hop into `chunk` is received; asked for before its forward, valid until the runner's forward takes it over.
  virtual void receive_forward(int chunk, int microbatch, HopViews& views) = 0;
  // What the hop out of `chunk` sends, after its forward; the runner keeps it until sent_forward().
  virtual void send_forward(int chunk, int microbatch, HopViews& views) = 0;
  virtual void sent_forward(int chunk, int microbatch) = 0;
  // Where the gradients of the hop out of `chunk` are received, before its backward.
  virtual void receive_backward(int chunk, int microbatch, HopViews& views) = 0;
  // The gradients for the hop into `chunk`, after its backward; kept until sent_backward().
  virtual void send_backward(int chunk, int microbatch, HopViews& views) = 0;
  virtual void sent_backward(int chunk, int microbatch) = 0;
};

struct ExecutionReport {
  int64_t stream_bytes_sent = 0, summary_bytes_sent = 0;  // by this rank, both directions
  double seconds = 0;                                     // from the first step to the last, sends included
  double busy_seconds = 0;                                // inside compute steps; of a GPU, by its own clock
  // Seconds and number of actions: [local chunk index c / P][kind].
  struct Cost {
    double seconds = 0;
    int64_t count = 0;
  };
  std::vector<std::array<Cost, 4>> costs;
  void add(const Action& action, int num_ranks, double action_seconds);
};

class Executor {
 public:
  // `comm` is the pipeline group: its rank is pp_rank. Both must outlive the executor.
  Executor(comm::Communicator& comm, ChunkRunner& runner, int num_chunks);

  // Collective over the group: every rank runs its own list of the same program. Returns when all its sends are done.
  // When a step throws, all transfers in flight are given up without waiting for the peers, before the exception leaves (the
  // views may be freed then), and the communicator refuses further work: the job has to end.
  ExecutionReport run(const std::vector<Step>& steps, Stream& stream);
  // On which these steps send and receive, for Communicator::connect().
  std::vector<comm::Channel> channels_of(const std::vector<Step>& steps) const;
  // Moves pending transfers on; to be called now and then inside long compute steps. Cheap.
  void progress();

  // What run() does from now on is recorded there: actions, messages in flight, waits for them. Null: nothing is.
  void set_trace(trace::Recorder* trace) { trace_ = trace; }

  // For fault injection in tests: called for each step before it runs.
  std::function<void(const Step&)> before_step;

 private:
  struct Transfer {
    Step step;
    std::vector<comm::Request> requests;
    int64_t span = no_span;
  };
  static constexpr int64_t no_span = -2;
  void post_receive(const Step& step, Stream& stream);
  void start_send(const Step& step, Stream& stream, ExecutionReport& report);
  void wait_for(const Action& action);
  void retire_sends(bool all);
  void compute(const Action& action, Stream& stream, ExecutionReport& report);
  void begin_on_gpu(Stream& stream);
  void add_gpu_times(Stream& stream, ExecutionReport& report);
  void check_order(const Step& step);
  void begin_span(Transfer& transfer, trace::Track track, int peer) const;
  void end_span(Transfer& transfer) const;
  void begin_trace(Stream& stream);
  void trace_action(const Action& action, double begin, double end) const;

  comm::Communicator& comm_;
  ChunkRunner& runner_;
  int num_chunks_;
  std::vector<Transfer> receiving_, sending_;  // oldest first
  // Messages between two ranks match by chunk and order: the last micro-batch of each, [local chunk][kind of step].
  std::vector<std::array<int, 5>> last_microbatch_;
  HopViews views_;
  // A GPU works later than it is told to: its actions lie between two points of the stream each.
  struct Span {
    Action action;
    Event begin, end;
  };
  std::vector<Span> spans_;
  size_t num_spans_ = 0;  // of this run
  trace::Recorder* trace_ = nullptr;
  Event trace_origin_;               // of a GPU's clock,
  double trace_origin_seconds_ = 0;  // and when that was by the recorder's
};

}  // namespace lamina::pipeline
