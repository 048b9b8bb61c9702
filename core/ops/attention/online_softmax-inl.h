// The softmax over one tile of scores after the other (Milakov and Gimelshein, arXiv 1805.02867). Compiled once per instruction set.
#if defined(LAMINA_CORE_OPS_CPU_ONLINE_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMINA_CORE_OPS_CPU_ONLINE_SOFTMAX_INL_H_
#undef LAMINA_CORE_OPS_CPU_ONLINE_SOFTMAX_INL_H_
#else
#define LAMINA_CORE_OPS_CPU_ONLINE_SOFTMAX_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/ops/attention/cpu_tiles.h"
#include "core/ops/simd/simd_math-inl.h"
#include "core/ops/simd/tile_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

// Scores [first, count) of one row to probabilities relative to the row's running maximum; zeros elsewhere in the tile. Returns
// the factor by which what was summed before must shrink.
inline float online_softmax(float* scores, size_t first, size_t count, float& largest, float& total) {
  const FloatTag d;
  if (first >= count) {
    std::fill(scores, scores + tile, 0.0f);
    return 1.0f;
  }
  const auto minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto most = minus_infinity;
  std::fill(scores, scores + first, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < count; i += num_lanes) {
    auto s = hn::Load(d, scores + i);
    if (i + num_lanes > count) {
      s = hn::IfThenElse(hn::FirstN(d, count - i), s, minus_infinity);
      hn::Store(s, d, scores + i);
    }
    most = hn::Max(most, s);
  }
  const float before = largest;
  largest = std::max(before, hn::GetLane(hn::MaxOfLanes(d, most)));
  const auto shift = hn::Set(d, largest);
  auto sum = hn::Zero(d);
  size_t i = 0;
  for (; i < count; i += num_lanes) {
    const auto p = fast_exp(d, hn::Sub(hn::Load(d, scores + i), shift));
    hn::Store(p, d, scores + i);
    sum = hn::Add(sum, p);
  }
  for (; i < tile; i += num_lanes) hn::Store(hn::Zero(d), d, scores + i);
  const float factor = before == largest ? 1.0f : std::exp(before - largest);
  total = total * factor + hn::GetLane(hn::SumOfLanes(d, sum));
  return factor;
}

inline void scale_row(float* row, size_t count, float factor) {
  const FloatTag d;
  for (size_t i = 0; i < count; i += num_lanes)
    hn::Store(hn::Mul(hn::Set(d, factor), hn::Load(d, row + i)), d, row + i);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
