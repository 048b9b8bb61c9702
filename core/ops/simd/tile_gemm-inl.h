// Products of small fp32 tiles, for kernels that fuse something between them. Compiled once per instruction set.
//
// The right operand lies in panels: [num_columns / panel_width][depth][panel_width], so the micro-kernel reads whole vectors one
// after the other. The left operand is read element by element, so it may be row-major or transposed at no cost.
#if defined(LAMINA_CORE_OPS_CPU_TILE_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMINA_CORE_OPS_CPU_TILE_GEMM_INL_H_
#undef LAMINA_CORE_OPS_CPU_TILE_GEMM_INL_H_
#else
#define LAMINA_CORE_OPS_CPU_TILE_GEMM_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/base/dtype.h"
#include "core/ops/simd/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

using FloatTag = hn::ScalableTag<float>;
constexpr size_t num_lanes = hn::MaxLanes(FloatTag());
constexpr size_t panel_width = 2 * num_lanes;
// 8 x 2 accumulators hide the latency of one 512-bit FMA per cycle; 16 registers (AVX2) hold 4 x 2.
constexpr size_t block_rows = num_lanes >= 16 ? 8 : 4;

enum class Left { plain, transposed };

struct Operand {
  const float* data;
  size_t leading;
};

// c[block_rows, vectors * num_lanes] = or += a[block_rows, depth] b[depth, ...].
template <Left left, size_t vectors>
HWY_INLINE void multiply_block(const Operand& a, const float* HWY_RESTRICT b, size_t depth, float* HWY_RESTRICT c,
                               size_t c_leading, bool accumulate) {
  const FloatTag d;
  hn::Vec<FloatTag> sum[block_rows][vectors];
#pragma GCC unroll 16
  for (size_t r = 0; r < block_rows; ++r) {
#pragma GCC unroll 2
    for (size_t v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
  }
  const float* HWY_RESTRICT left_at = a.data;
  const size_t row_step = left == Left::plain ? a.leading : 1, depth_step = left == Left::plain ? 1 : a.leading;
  for (size_t k = 0; k < depth; ++k) {
    hn::Vec<FloatTag> right[vectors];
#pragma GCC unroll 2
    for (size_t v = 0; v < vectors; ++v) right[v] = hn::Load(d, b + k * panel_width + v * num_lanes);
#pragma GCC unroll 16
    for (size_t r = 0; r < block_rows; ++r) {
      const auto scalar = hn::Set(d, left_at[r * row_step]);
#pragma GCC unroll 2
      for (size_t v = 0; v < vectors; ++v) sum[r][v] = hn::MulAdd(scalar, right[v], sum[r][v]);
    }
    left_at += depth_step;
  }
#pragma GCC unroll 16
  for (size_t r = 0; r < block_rows; ++r) {
#pragma GCC unroll 2
    for (size_t v = 0; v < vectors; ++v) {
      float* at = c + r * c_leading + v * num_lanes;
      hn::Store(accumulate ? hn::Add(hn::Load(d, at), sum[r][v]) : sum[r][v], d, at);
    }
  }
}

// Skips what a causal mask makes zero. The tile's element (row, column) is masked where row < column; `none` is a full tile.
enum class Mask { none, columns_after_row };

// c[rows, columns] = a[rows, depth] b, leaving blocks above the diagonal unwritten.
inline void multiply_masked_output(const Operand& a, const float* b, size_t b_panel, size_t depth, size_t rows,
                                   size_t columns, Mask mask, float* c, size_t c_leading) {
  for (size_t column = 0; column < columns; column += panel_width, b += b_panel) {
    const size_t first = mask == Mask::none ? 0 : column / block_rows * block_rows;
    for (size_t row = first; row < rows; row += block_rows) {
      multiply_block<Left::plain, 2>({a.data + row * a.leading, a.leading}, b, depth, c + row * c_leading + column,
                                     c_leading, false);
    }
  }
}

// c[rows, columns] += a b, where a is masked: plain a[rows, depth], or transposed, a^T [depth, rows] being the masked tile.
template <Left left>
inline void multiply_masked_left(const Operand& a, const float* b, size_t b_panel, size_t depth, size_t rows,
                                 size_t columns, Mask mask, float* c, size_t c_leading) {
  for (size_t column = 0; column < columns; column += panel_width, b += b_panel) {
    const bool narrow = columns - column <= num_lanes;
    for (size_t row = 0; row < rows; row += block_rows) {
      size_t first = 0, last = depth;
      if (mask != Mask::none) {
        if (left == Left::plain)
          last = std::min(depth, row + block_rows);
        else
          first = std::min(depth, row);
      }
      const float* start = left == Left::plain ? a.data + row * a.leading : a.data + first * a.leading + row;
      float* out = c + row * c_leading + column;
      if (narrow)
        multiply_block<left, 1>({start, a.leading}, b + first * panel_width, last - first, out, c_leading, true);
      else
        multiply_block<left, 2>({start, a.leading}, b + first * panel_width, last - first, out, c_leading, true);
    }
  }
}

// out[d] = factor * in[d], zeros up to `padded`.
template <class T>
HWY_INLINE void convert_row(const T* in, size_t count, size_t padded, float factor, float* out) {
  const FloatTag d;
  size_t i = 0;
  for (; i + num_lanes <= count; i += num_lanes) hn::StoreU(hn::Mul(hn::Set(d, factor), load(d, in + i)), d, out + i);
  for (; i < count; ++i) out[i] = factor * static_cast<float>(in[i]);
  for (; i < padded; ++i) out[i] = 0.0f;
}
template <class T>
HWY_INLINE void write_row(const float* in, size_t count, float factor, T* out) {
  const FloatTag d;
  size_t i = 0;
  for (; i + num_lanes <= count; i += num_lanes) store(hn::Mul(hn::Set(d, factor), hn::LoadU(d, in + i)), d, out + i);
  for (; i < count; ++i) out[i] = static_cast<T>(factor * in[i]);
}

// Rows [num_rows, leading] to panels of their columns, panel_stride apart; each panel's rows follow one another.
inline void rows_to_panels(const float* rows, size_t leading, size_t num_rows, size_t width, float* panels,
                           size_t panel_stride) {
  for (size_t column = 0; column < width; column += panel_width, panels += panel_stride) {
    const size_t count = std::min(panel_width, width - column);
    if (count == panel_width) {
      const FloatTag d;
      for (size_t r = 0; r < num_rows; ++r) {
        const float* from = rows + r * leading + column;
        float* to = panels + r * panel_width;
        hn::StoreU(hn::LoadU(d, from), d, to);
        hn::StoreU(hn::LoadU(d, from + num_lanes), d, to + num_lanes);
      }
      continue;
    }
    for (size_t r = 0; r < num_rows; ++r) {
      std::memcpy(panels + r * panel_width, rows + r * leading + column, count * sizeof(float));
      for (size_t i = count; i < panel_width; ++i) panels[r * panel_width + i] = 0.0f;
    }
  }
}

// Rows [num_rows, leading] to panels of the transposed matrix [width, num_rows]. num_rows is a multiple of panel_width, the width
// is rounded up to a multiple of 4 (inside `leading`), and so is each panel's depth: its stride is that width * panel_width.
inline void rows_to_transposed_panels(const float* rows, size_t leading, size_t num_rows, size_t width4,
                                      float* panels) {
  for (size_t first = 0; first < num_rows; first += panel_width, panels += width4 * panel_width) {
#if HWY_TARGET == HWY_SCALAR
    for (size_t k = 0; k < width4; ++k) {
      for (size_t r = 0; r < panel_width; ++r) panels[k * panel_width + r] = rows[(first + r) * leading + k];
    }
#else
    const hn::FixedTag<float, 4> d4;
    for (size_t r = 0; r < panel_width; r += 4) {
      const float* in = rows + (first + r) * leading;
      for (size_t k = 0; k < width4; k += 4) {
        const auto a0 = hn::LoadU(d4, in + k), a1 = hn::LoadU(d4, in + leading + k);
        const auto a2 = hn::LoadU(d4, in + 2 * leading + k), a3 = hn::LoadU(d4, in + 3 * leading + k);
        const auto t0 = hn::InterleaveLower(d4, a0, a2), t1 = hn::InterleaveUpper(d4, a0, a2);
        const auto t2 = hn::InterleaveLower(d4, a1, a3), t3 = hn::InterleaveUpper(d4, a1, a3);
        float* out = panels + k * panel_width + r;
        hn::StoreU(hn::InterleaveLower(d4, t0, t2), d4, out);
        hn::StoreU(hn::InterleaveUpper(d4, t0, t2), d4, out + panel_width);
        hn::StoreU(hn::InterleaveLower(d4, t1, t3), d4, out + 2 * panel_width);
        hn::StoreU(hn::InterleaveUpper(d4, t1, t3), d4, out + 3 * panel_width);
      }
    }
#endif
  }
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
