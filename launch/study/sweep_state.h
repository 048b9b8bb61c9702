// Where the runs of a sweep stand, from what is on disk, and the table of it.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "launch/study/sweep_file.h"

namespace lamina::study {

enum class RunState { waiting, running, done, failed, diverged, stopped };  // stopped: early, as hopeless

inline bool has_ended(RunState state) {
  return state == RunState::done || state == RunState::diverged || state == RunState::stopped;
}

struct RunStatus {
  RunState state = RunState::waiting;
  int64_t step = 0;              // of the newest row, or checkpoint
  double loss = 0;               // of the newest row; 0: none yet
  double validation_loss = 0;    // the last one; 0: none yet
  double tokens_per_second = 0;  // of the newest row
  std::string reason;            // of a failure, a divergence or an early stop
};

// The folder's files for a sweep's process: the experiment of a run as it is started, and what the run prints.
std::filesystem::path config_file(const SweepPlan& plan, const PlannedRun& run);
std::filesystem::path log_file(const SweepPlan& plan, const PlannedRun& run);

// Of one run: diverged when its last start ended so; done when its newest checkpoint is of its last step and it was validated there
// (with data.validation); running while a living process has locked its folder. A damaged folder is an Error.
RunStatus read_status(const PlannedRun& run);

// Throws Error naming the run's config.yaml and the first key that differs when the folder holds results of another
// configuration. How and where a run computes may change between starts (layout, threads, checkpoints, logging); what it
// computes may not.
void check_same_run(const PlannedRun& run);

// Runs that the sweep stopped early and why, by name, as its state.json has them. A run that has gone on since is none of them.
std::map<std::string, std::string> read_stopped(const std::filesystem::path& sweep_folder);
std::filesystem::path state_file(const std::filesystem::path& sweep_folder);

// The last error in a run's log, or how its process ended.
std::string failure_reason(const std::filesystem::path& log, int wait_status);

// One line for each run, then the sums: "36 runs: 12 done, 2 running, 21 waiting, 1 failed", and how many diverged or were stopped early.
std::string status_table(const SweepPlan& plan, const std::vector<RunStatus>& status);
std::string status_line(const PlannedRun& run, const RunStatus& status, size_t name_width);
std::string status_sums(const std::vector<RunStatus>& status);

}  // namespace lamina::study
