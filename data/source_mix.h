// Which source the n-th sequence comes from, and its index within that source: a function of n in constant time.
//
// The sources repeat in a fixed pattern of 65536 slots. Each has its share of the slots (largest remainder), spread
// evenly: the next slot goes to the source that lags most behind its share, so no prefix is ever far from the weights.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lamina {

class SourceMix {
 public:
  static constexpr int64_t num_slots = 65536;

  // Weights are normalised; at least one is positive. A positive weight too small for a slot is an Error.
  explicit SourceMix(std::span<const double> weights);

  struct Slot {
    int64_t source;
    int64_t index;  // among the sequences of this source
  };
  Slot at(int64_t n) const;

  int64_t count_before(int64_t n, int64_t source) const;  // sequences of `source` among the first n

 private:
  std::vector<int64_t> slots_per_source_;
  std::vector<uint16_t> source_of_slot_;
  std::vector<uint16_t> rank_of_slot_;  // how many earlier slots have the same source
};

}  // namespace lamina
