// Writes traces/step-<step>.json for the steps of logging.trace_steps: what every rank computed, sent, received and waited for,
// as Chrome's trace format (https://ui.perfetto.dev, chrome://tracing), and beside it the pipeline's timeline as
// pipeline::simulate() has it from the step's own mean costs. docs/formats.md has the contents.
//
// Clocks. A step's time begins at one moment of rank 0's steady clock, after a barrier. Every rank measures its clock's offset
// from rank 0's by messages there and back: rank 0's answer was given somewhere between them, so the offset is known to within
// half of the shortest way there and back of several (F. Cristian, Probabilistic clock synchronization, 1989). That error is
// written down ("clock_error"): microseconds between processes of one machine with a core each, more where ranks share cores.
// Where the measured offset is smaller than its error, as between processes of one machine, whose steady clock is the same one,
// it is taken as 0. The clocks' drift within a step (some 1e-5 of it between machines) is not corrected.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/base/trace.h"
#include "parallel/comm/communicator.h"
#include "trainer/step/engine.h"

namespace lamina {

class StepTracer {
 public:
  // `folder`: where the traces go. All must outlive the tracer, except that `engine` may be destroyed first.
  StepTracer(const Config& config, comm::Communicator& comm, std::filesystem::path folder);

  // Before anything of the step: from here on the engine records, if the step (counted from 1) is one of logging.trace_steps.
  // Collective then.
  void begin(int64_t step, Engine& engine);
  // The engine's part of the step is over; what it does from now on, as in validation, is not recorded.
  void release(Engine& engine);
  // The step is over, with validation and checkpoint: writes the trace, if there is one. Collective then.
  void finish(const Engine& engine);

  // Null outside a traced step.
  trace::Recorder* recorder() { return recorder_ ? &*recorder_ : nullptr; }

 private:
  void align_clocks();

  const Config& config_;
  comm::Communicator& comm_;
  std::filesystem::path folder_;
  std::optional<trace::Recorder> recorder_;
  int64_t step_ = 0;
  double clock_error_ = 0;  // seconds, of this rank's clock against rank 0's
};

}  // namespace lamina
