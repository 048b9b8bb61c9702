// What a page shows of one run, as JSON: the scripts in assets/ draw it.
#pragma once

#include <nlohmann/json.hpp>

#include "launch/study/run_data.h"

namespace lamina::report {

// How much of a long run goes into the page.
struct Limits {
  size_t points = 4000;        // of a curve, besides its ends
  size_t map_cells = 8000;     // of one heat map over steps
  size_t map_values = 60000;   // of all depth-weight maps, and of all maps of the experts' load
  size_t timeline_ranks = 64;  // rows of a pipeline timeline
};
Limits limits_for(size_t num_runs);  // a page of many runs shows less of each

// name, folder, config, summary {state, step, ..}, time_zero (seconds since 1970; all times of the document count from it)
//   series     {"loss": {step, tokens, time, value, rows, stretch, mean}, ..} (series.h)
//   starts     [{start, step, tokens, time, running}] (metrics_digest.h)
//   spikes     [{step, batch, action, passed, reason}] of spikes.jsonl: the newest, spikes_left_out are older
//   layers, trace     layer_document.h, trace_document.h
// Error naming the file and the step: a row of metrics.jsonl without one of the numbers that every row has, steps that do not
// rise, a row of layers.jsonl that names no sublayer, or depth weights that are not those of the model.
nlohmann::json run_document(const study::RunData& run, const Limits& limits);

// "done", "at step 7 of 100", "diverged at step 8 of 100".
std::string state_text(const study::RunData& run);

}  // namespace lamina::report
