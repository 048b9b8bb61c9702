// Runs a sweep's runs as processes of this machine, or hands them to Slurm.
#pragma once

#include <string>
#include <vector>

#include "launch/study/sweep_state.h"

namespace lamina::study {

struct SweepOptions {
  std::string program;                     // the lamina to start
  int jobs = 1;                            // runs at a time
  std::string launcher = "mpirun";         // of runs with several ranks: <launcher> -n <ranks> lamina train ...
  bool show_table = false;                 // redraw a table on the terminal; otherwise a line for each change
  std::string slurm_script;                // submit runs with this batch script
  std::vector<std::string> slurm_options;  // of sbatch
};

// Checks everything that can be checked before a run starts: folders of other experiments, ranks that don't fit, data that is
// not there. Error; nothing was written.
void check_sweep(const SweepPlan& plan);

// Where all runs stand; with jobs of Slurm, what its queue says of them.
std::vector<RunStatus> sweep_status(const SweepPlan& plan);

struct SweepEnd {
  int failed = 0;
  int diverged = 0;
  bool is_stopped = false;  // on request (core/base/stop.h): the runs have saved, the same call goes on
};

// Starts what is not done, options.jobs at a time, until all are done or failed. A run that asks to be resumed (exit status 75)
// is started again, unless it makes no progress. On a stop request the runs get SIGUSR1 and are waited for. Only one
// process at a time works on a sweep's folder: Error when another one does.
SweepEnd run_sweep(const SweepPlan& plan, const SweepOptions& options);

// Submits what is neither done nor in Slurm's queue, and returns the number of submitted runs.
int submit_sweep(const SweepPlan& plan, const SweepOptions& options);

}  // namespace lamina::study
