// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
// A value is a pure function of (seed, stream, index), so initial parameters and sample order don't depend on the
// number of ranks, on the order of calls, or on what was drawn before: nothing has to be saved to resume.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace lamina {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

class CounterRng {
 public:
  CounterRng(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  CounterRng(uint64_t seed, std::string_view stream_name);

  uint64_t bits(uint64_t index) const;
  double uniform(uint64_t index) const;                  // [0, 1), 53 bits
  double normal(uint64_t index) const;                   // standard normal (Box-Muller, one value per index)
  uint64_t below(uint64_t index, uint64_t bound) const;  // [0, bound), bias below 2^-64 * bound

 private:
  uint64_t seed_;
  uint64_t stream_;
};

}  // namespace lamina
