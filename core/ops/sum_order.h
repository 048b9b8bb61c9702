// The order in which sum_squares adds: blocks of fixed size, each in `sum_lanes` interleaved partial sums, lanes in
// order, blocks in order. A function of the count only, so neither threads nor the width of a vector register can
// change the result. (The square of an fp32 value is exact in double, so neither can a fused multiply-add.)
#pragma once

#include <cstdint>

namespace lamina::ops {

constexpr int64_t sum_block = 8192;
constexpr int64_t sum_lanes = 32;

constexpr int64_t num_sum_blocks(int64_t count) {
  return (count + sum_block - 1) / sum_block;
}

inline double add_lanes(const double* lanes) {
  double sum = 0;
  for (int64_t i = 0; i < sum_lanes; ++i) sum += lanes[i];
  return sum;
}

}  // namespace lamina::ops
