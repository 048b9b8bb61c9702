// How long a sweep takes: work counted from the models (model/cost_model.h), rates from the runs that there are.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "launch/study/sweep_state.h"
#include "model/plan.h"

namespace lamina::study {

using Work = std::map<std::string, double>;  // FLOP by size: larger models do more per second
double sum(const Work& work);

// FLOP of a whole run. A vocab_size that is the tokenizer's is looked up.
double run_flops(const Config& config);
// Of the runs that have not ended, without the steps that they have done.
Work work_left(const SweepPlan& plan, const std::vector<RunStatus>& status);

// The cores that this process may use.
std::vector<int> usable_cores();
// What is to be said of runs side by side that have more threads than there are cores; "" when they have not.
std::string crowding(const SweepPlan& plan, int jobs);

class SweepClock {
 public:
  SweepClock(double total, int jobs) : total_(total), jobs_(jobs) {}

  // A run of this size did so much in so many seconds, start and validations included.
  void measured(const std::string& size, double flops, double seconds);
  // The rates that the rows of runs say, for what was trained before; in steps only.
  void measured(const SweepPlan& plan, const std::vector<RunStatus>& status);
  bool has_rates() const { return !rates_.empty(); }

  // With `jobs` runs at a time. A size that has not run yet is taken at the rate of all others together. Absent without any rate.
  std::optional<double> seconds_left(const Work& left) const;
  // "41.2 % of 2.76e+14 FLOP, about 1 h 20 min left"
  std::string text(const Work& left) const;

 private:
  struct Rate {
    double flops = 0, seconds = 0;
  };
  double total_;
  int jobs_;
  std::map<std::string, Rate> rates_;
};

// Seconds of a run as `lamina plan` counts them, on `machine` (measured with all cores) shared by `jobs` runs: less than it will take,
// since small tensors don't reach the rates of large ones.
double planned_seconds(const Config& config, int ranks, int jobs, model::PlanDevice machine);

std::string duration_text(double seconds);  // "50 s", "12 min", "3 h 05 min", "2 d 04 h"

}  // namespace lamina::study
