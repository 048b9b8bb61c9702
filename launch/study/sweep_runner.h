// Runs a sweep's runs as processes of this machine, or hands them to Slurm.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/study/sweep_state.h"
#include "launch/study/sweep_tune.h"

namespace lamina::study {

struct SweepOptions {
  std::string program;                     // the lamina to start
  int jobs = 1;                            // runs at a time
  std::string launcher = "mpirun";         // of runs with several ranks: <launcher> -n <ranks> lamina train ...
  bool bind = false;                       // each of the runs at a time gets cores of its own
  bool show_table = false;                 // redraw a table on the terminal; otherwise a line for each change
  std::string slurm_script;                // submit runs with this batch script
  std::vector<std::string> slurm_options;  // of sbatch
};

// Checks everything that can be checked before a run starts: folders of other experiments, ranks that don't fit, data that is
// not there. Error; nothing was written. The folders of runs whose value is not chosen yet are not looked at.
void check_sweep(const SweepPlan& plan);

// Where all runs stand; with jobs of Slurm, what its queue says of them.
std::vector<RunStatus> sweep_status(const SweepPlan& plan);

struct SweepEnd {
  int runs = 0;  // of the stage that it is about: the study, or a rung of its tuning
  int failed = 0;
  int diverged = 0;
  int stopped_early = 0;
  bool is_stopped = false;  // on request (core/base/stop.h): the runs have saved, the same call goes on
};

// Starts what is not done, options.jobs at a time, until all are done or failed. A run that asks to be resumed (exit status 75)
// is started again, unless it makes no progress. On a stop request the runs get SIGUSR1 and are waited for. Only one
// process at a time works on a sweep's folder: Error when another one does. With plan.tune the first stage runs first, rung by
// rung; when one of its runs fails, or every value of a cell diverges, the study's runs are not started.
SweepEnd run_sweep(SweepPlan plan, const SweepOptions& options);

// Submits what is neither done nor in Slurm's queue, and returns the number of submitted runs; with plan.tune those of the rung at
// hand, until the values are chosen.
int submit_sweep(SweepPlan plan, const SweepOptions& options);

}  // namespace lamina::study
