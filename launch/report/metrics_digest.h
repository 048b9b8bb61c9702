// What a page needs of metrics.jsonl, in one pass and in memory that doesn't grow with the number of steps.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/report/series.h"
#include "launch/study/run_data.h"

namespace lamina::report {

// A process that worked on the run: it began with `step`. A run that was resumed has several.
struct Start {
  int64_t number = 1, step = 0, tokens = 0;
  double time = std::numeric_limits<double>::quiet_NaN();  // when that step was done, seconds since 1970
  // What the run had then been running for, in seconds: the times of all starts, without the pauses between them. NaN without times.
  double running = std::numeric_limits<double>::quiet_NaN();
};

// The first step that a run's rows tell of a stage other than its first one.
struct StageBegin {
  int64_t stage = 1, step = 0, tokens = 0;
};

// [{start, step, tokens, time, running}]; `time` counts from `time_zero`, null is not known.
nlohmann::json to_json(const std::vector<Start>& starts, double time_zero);

struct MetricsDigest {
  std::map<std::string, Thinner> series;  // of the keys that some row has
  std::vector<Start> starts;
  std::vector<StageBegin> stages;        // in order
  nlohmann::json peak_bytes;             // of the last row that has them: they grow only
  double seconds_in_steps = 0;           // without start-up, validation and checkpoints
  double tokens_in_steps = 0;            // of the steps whose time is known
  double mfu_seconds = 0, mfu_time = 0;  // the sum of mfu x time, and of the times, of the steps that have both
  double first_time() const;             // of the first start that has one; 0 without

  const Thinner* find(const std::string& key) const;
};

// `keys`, and with `with_tasks` "tasks.<name>.acc" of every task that was ever answered. Error naming the file and the step: a row
// without one of the numbers that every row has, or steps that do not rise.
MetricsDigest digest_metrics(const study::RunData& run, const std::vector<std::string>& keys, bool with_tasks,
                             size_t max_points);

}  // namespace lamina::report
