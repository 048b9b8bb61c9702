#include "data/permutation.h"

#include <algorithm>
#include <bit>

#include "core/base/error.h"
#include "core/base/rng.h"

namespace lamina {

Permutation::Permutation(uint64_t size, uint64_t seed, uint64_t stream) : size_(size), seed_(seed), stream_(stream) {
  LAMINA_CHECK(size > 0 && size <= (uint64_t{1} << 62), "size {}", size);
  half_bits_ = std::max(1, static_cast<int>((std::bit_width(size - 1) + 1) / 2));
}

uint64_t Permutation::operator()(uint64_t index) const {
  LAMINA_CHECK(index < size_, "index {} of {}", index, size_);
  constexpr uint64_t num_rounds = 6;
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  const CounterRng rng(seed_, stream_);
  // The range fills more than a quarter of the domain, so four walks are expected at most; the orbit of an index in the
  // range comes back to it, so the walk ends.
  do {
    uint64_t left = index >> half_bits_;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < num_rounds; ++round) {
      const uint64_t mixed = left ^ (rng.bits((round << 32) | right) & mask);
      left = right;
      right = mixed;
    }
    index = (left << half_bits_) | right;
  } while (index >= size_);
  return index;
}

}  // namespace lamina
