// Finds runs that are hopeless: after the stated share of their steps, the newest validation loss that can be compared is more than the
// margin above the best one of the run's cell at the same step. Only steps at which another run of the cell has validated count, so
// which runs are stopped hangs on the order in which they are trained; the first one of a cell is never stopped alone. Runs with
// losses that are not finite end by themselves.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "launch/study/sweep_file.h"

namespace lamina::study {

class EarlyStopper {
 public:
  explicit EarlyStopper(const SweepPlan& plan);  // which outlives it
  // Why this run is hopeless, from what its cell's metrics.jsonl say now; "" while it is not, or without early_stop.
  std::string reason(size_t run);

 private:
  using Losses = std::map<int64_t, double>;  // step -> validation loss
  const Losses& losses(size_t run);

  const SweepPlan& plan_;
  std::vector<size_t> cell_of_;   // [run]
  std::vector<Losses> losses_;    // [run], as far as they were read
  std::vector<uintmax_t> bytes_;  // [run], of the file when it was read
};

}  // namespace lamina::study
