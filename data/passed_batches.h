// The batches that a run passes over. Batch b is the one that step b takes in a run that passes none over; step s takes the s-th of the
// remaining ones. So what a step sees is still a function of its number and this list.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "configs/schema/step_ranges.h"

namespace lamina {

class PassedBatches {
 public:
  PassedBatches() = default;
  explicit PassedBatches(std::vector<StepRange> ranges) : ranges_(join(std::move(ranges))) {}

  void add(StepRange batches);
  void add(const PassedBatches& other);
  int64_t batch_of(int64_t step) const;  // both counted from 1; 0 of step 0
  // Those before batch `end`: what a run that has come so far has passed over.
  PassedBatches before(int64_t end) const;
  const std::vector<StepRange>& ranges() const { return ranges_; }
  bool operator==(const PassedBatches&) const = default;

 private:
  std::vector<StepRange> ranges_;  // in order, apart
};

}  // namespace lamina
