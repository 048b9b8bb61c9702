// What a page shows of the run's newest traces: when each rank computed what, as it happened and as simulated.
#pragma once

#include <nlohmann/json.hpp>

#include "launch/report/run_document.h"

namespace lamina::report {

// Of the traces/step-<step>.json of a run: an array, oldest first, of
//   step, ranks, shown_ranks, pipeline, data, schedule
//   real, simulated     {actions: [[rank, chunk, microbatch, kind, start, end]], makespan, bubble}; seconds from the first action
// Empty without traces. A bubble is the share of the ranks' time between the first start and the last end in which nothing is
// computed. Error naming the file: not JSON, no "lamina" of this form, an action that ends before it starts.
nlohmann::json trace_document(const study::RunData& run, const Limits& limits);

}  // namespace lamina::report
