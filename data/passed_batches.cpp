#include "data/passed_batches.h"

#include <algorithm>
#include <utility>

namespace lamina {

void PassedBatches::add(StepRange batches) {
  ranges_.push_back(batches);
  ranges_ = join(std::move(ranges_));
}

void PassedBatches::add(const PassedBatches& other) {
  ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
  ranges_ = join(std::move(ranges_));
}

int64_t PassedBatches::batch_of(int64_t step) const {
  int64_t batch = step;
  for (const StepRange& range : ranges_) {
    if (range.first > batch) break;
    batch += range.last - range.first + 1;
  }
  return batch;
}

PassedBatches PassedBatches::before(int64_t end) const {
  std::vector<StepRange> ranges;
  for (const StepRange& range : ranges_)
    if (range.first < end) ranges.push_back({range.first, std::min(range.last, end - 1)});
  return PassedBatches(std::move(ranges));
}

}  // namespace lamina
