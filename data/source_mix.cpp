#include "data/source_mix.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base/error.h"

namespace lamina {

SourceMix::SourceMix(std::span<const double> weights) {
  if (weights.empty() || weights.size() > num_slots)
    throw Error("found {} data sources, expected 1 to {}", weights.size(), num_slots);
  double sum = 0;
  for (const double weight : weights) {
    if (!std::isfinite(weight) || weight < 0) throw Error("found the weight {}, expected a number from 0 up", weight);
    sum += weight;
  }
  if (!(sum > 0) || !std::isfinite(sum)) throw Error("the weights add up to {}, expected more than 0", sum);

  const size_t num_sources = weights.size();
  slots_per_source_.resize(num_sources);
  std::vector<double> remainder(num_sources);
  for (size_t s = 0; s < num_sources; ++s) {
    const double exact = weights[s] / sum * static_cast<double>(num_slots);
    slots_per_source_[s] = std::min(num_slots, static_cast<int64_t>(exact));
    remainder[s] = exact - static_cast<double>(slots_per_source_[s]);
  }
  std::vector<size_t> order(num_sources);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return remainder[a] > remainder[b]; });
  int64_t left = num_slots - std::accumulate(slots_per_source_.begin(), slots_per_source_.end(), int64_t{0});
  LAMINA_CHECK(left >= 0 && left <= static_cast<int64_t>(num_sources), "{} slots left", left);
  for (size_t i = 0; left > 0; ++i, --left) ++slots_per_source_[order[i]];
  for (size_t s = 0; s < num_sources; ++s)
    if (weights[s] > 0 && slots_per_source_[s] == 0)
      throw Error("the weight {} is {:.2g} of all, expected at least {:.2g} (one sequence in {})", weights[s],
                  weights[s] / sum, 1.0 / static_cast<double>(num_slots), num_slots);

  source_of_slot_.resize(num_slots);
  rank_of_slot_.resize(num_slots);
  std::vector<int64_t> used(num_sources, 0);
  std::vector<int64_t> lag(num_sources, 0);  // share of the slots so far minus slots used, times num_slots
  for (size_t slot = 0; slot < static_cast<size_t>(num_slots); ++slot) {
    for (size_t s = 0; s < num_sources; ++s) lag[s] += slots_per_source_[s];
    const auto chosen = static_cast<size_t>(std::max_element(lag.begin(), lag.end()) - lag.begin());
    lag[chosen] -= num_slots;
    source_of_slot_[slot] = static_cast<uint16_t>(chosen);
    rank_of_slot_[slot] = static_cast<uint16_t>(used[chosen]++);
  }
  LAMINA_CHECK(used == slots_per_source_);
}

SourceMix::Slot SourceMix::at(int64_t n) const {
  LAMINA_CHECK(n >= 0, "sequence {}", n);
  const auto slot = static_cast<size_t>(n % num_slots);
  const auto source = static_cast<size_t>(source_of_slot_[slot]);
  return {static_cast<int64_t>(source), n / num_slots * slots_per_source_[source] + rank_of_slot_[slot]};
}

int64_t SourceMix::count_before(int64_t n, int64_t source) const {
  LAMINA_CHECK(n >= 0 && source >= 0 && source < static_cast<int64_t>(slots_per_source_.size()));
  const int64_t per_pattern = slots_per_source_[static_cast<size_t>(source)];
  int64_t in_pattern = per_pattern;
  // The next slot of this source knows how many came before it.
  for (int64_t slot = n % num_slots; slot < num_slots; ++slot) {
    if (source_of_slot_[static_cast<size_t>(slot)] != source) continue;
    in_pattern = rank_of_slot_[static_cast<size_t>(slot)];
    break;
  }
  return n / num_slots * per_pattern + in_pattern;
}

}  // namespace lamina
