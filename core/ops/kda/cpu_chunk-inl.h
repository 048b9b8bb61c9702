// The steps of a chunk that the forward and the backward kernel of Kimi Delta Attention share. Compiled once per instruction set.
#if defined(LAMINA_CORE_OPS_CPU_KDA_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMINA_CORE_OPS_CPU_KDA_CHUNK_INL_H_
#undef LAMINA_CORE_OPS_CPU_KDA_CHUNK_INL_H_
#else
#define LAMINA_CORE_OPS_CPU_KDA_CHUNK_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>

#include "core/ops/kda/cpu_chunk.h"
#include "core/ops/simd/simd_math-inl.h"
#include "core/ops/simd/tile_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

using FloatVector = hn::Vec<FloatTag>;

HWY_INLINE FloatVector at(const float* from) {
  return hn::LoadU(FloatTag(), from);
}
HWY_INLINE void put(FloatVector v, float* to) {
  hn::StoreU(v, FloatTag(), to);
}

// What a lower triangular left operand [rows, depth] lets out: plain, depths after the row's block; transposed, those before it.
enum class Triangle { none, lower };

// c[rows, columns] = or += a b, everything in whole sub-blocks. b's panels are `b_panel` apart.
template <Left left>
inline void product(const Operand& a, const float* b, size_t b_panel, size_t depth, size_t rows, size_t columns,
                    float* c, size_t c_leading, bool accumulate, Triangle triangle = Triangle::none) {
  for (size_t column = 0; column < columns; column += panel_width, b += b_panel) {
    const bool narrow = columns - column <= num_lanes;
    for (size_t row = 0; row < rows; row += block_rows) {
      size_t first = 0, last = depth;
      if (triangle == Triangle::lower) {
        if (left == Left::plain)
          last = row + block_rows;
        else
          first = row;
      }
      const float* start = left == Left::plain ? a.data + row * a.leading + first : a.data + first * a.leading + row;
      float* out = c + row * c_leading + column;
      if (narrow)
        multiply_block<left, 1>({start, a.leading}, b + first * panel_width, last - first, out, c_leading, accumulate);
      else
        multiply_block<left, 2>({start, a.leading}, b + first * panel_width, last - first, out, c_leading, accumulate);
    }
  }
}

// Rows [num_rows, leading] to panels of the transposed matrix [width, num_rows]; both in whole sub-blocks.
inline void transposed_panels(const float* rows, size_t leading, size_t num_rows, size_t width, float* panels) {
  for (size_t first = 0; first < num_rows; first += panel_width, panels += width * panel_width) {
    const size_t count = std::min(panel_width, num_rows - first);
#if HWY_TARGET == HWY_SCALAR
    for (size_t k = 0; k < width; ++k) {
      for (size_t r = 0; r < count; ++r) panels[k * panel_width + r] = rows[(first + r) * leading + k];
    }
#else
    const hn::FixedTag<float, 4> d4;
    for (size_t r = 0; r < count; r += 4) {
      const float* in = rows + (first + r) * leading;
      for (size_t k = 0; k < width; k += 4) {
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

// rows[num_rows, width] *= factors[width]
inline void scale_columns(float* rows, size_t num_rows, size_t width, const float* factors) {
  for (size_t r = 0; r < num_rows; ++r, rows += width) {
    for (size_t d = 0; d < width; d += num_lanes) put(hn::Mul(at(rows + d), at(factors + d)), rows + d);
  }
}
// Row i of [num_rows, width] *= factors[i].
inline void scale_rows(float* rows, size_t num_rows, size_t width, const float* factors) {
  for (size_t r = 0; r < num_rows; ++r, rows += width) {
    const auto factor = hn::Set(FloatTag(), factors[r]);
    for (size_t d = 0; d < width; d += num_lanes) put(hn::Mul(at(rows + d), factor), rows + d);
  }
}

// Heads lie between other heads, often a page or more from token to token, where the processor doesn't look ahead by itself.
inline constexpr size_t rows_ahead = 8;
template <class T>
HWY_INLINE void prefetch_row(const TensorView& view, const Segment& segment, int64_t head, size_t token) {
  if (token >= static_cast<size_t>(segment.end)) return;
  const auto* row = reinterpret_cast<const char*>(row_of<T>(view, segment.batch, head, token));
  for (size_t byte = 0; byte < static_cast<size_t>(view.size(3)) * sizeof(T); byte += 64) hwy::Prefetch(row + byte);
}

// `count` tokens of a head from `first`, times `factor`; zeros up to a whole chunk.
template <class T>
void load_rows(const TensorView& view, const Segment& segment, int64_t head, size_t first, size_t count, float factor,
               float* out) {
  const auto width = static_cast<size_t>(view.size(3));
  for (size_t r = 0; r < count; ++r) {
    prefetch_row<T>(view, segment, head, first + r + rows_ahead);
    convert_row(row_of<T>(view, segment.batch, head, first + r), width, width, factor, out + r * width);
  }
  std::fill(out + count * width, out + chunk * width, 0.0f);
}

// q, k, beta and exp g of a chunk. After the segment's end k and beta are 0 and the decay is 1: such tokens change nothing.
template <class T, class Args>
void load_chunk(const Args& args, const HeadDims& dims, const Segment& segment, int64_t head, size_t first,
                size_t count, const ChunkWork& work) {
  const FloatTag d;
  const size_t d_k = dims.d_k;
  load_rows<T>(args.q, segment, head, first, count, static_cast<float>(args.scale), work.qk);
  load_rows<T>(args.k, segment, head, first, count, 1.0f, work.qk + chunk * d_k);
  for (size_t r = 0; r < count; ++r) {
    prefetch_row<float>(args.g, segment, head, first + r + rows_ahead);
    const float* g = row_of<float>(args.g, segment.batch, head, first + r);
    for (size_t i = 0; i < d_k; i += num_lanes) put(fast_exp(d, at(g + i)), work.alpha + r * d_k + i);
    work.beta[r] = *row_of<float>(args.beta, segment.batch, head, first + r);
  }
  std::fill(work.alpha + count * d_k, work.alpha + chunk * d_k, 1.0f);
  std::fill(work.beta + count, work.beta + chunk, 0.0f);
}

// left, right and totals within each sub-block; e1 and e2, when not null, are the decays alone.
inline void decay_sub_blocks(const HeadDims& dims, const ChunkWork& work, float* e1, float* e2) {
  const size_t d_k = dims.d_k;
  for (size_t block = 0; block < num_sub_blocks; ++block) {
    for (size_t i = 0; i < d_k; i += num_lanes) {
      const size_t first = block * sub_block * d_k + i, last = first + (sub_block - 1) * d_k, k_half = chunk * d_k;
      auto decay = hn::Set(FloatTag(), 1.0f);
      for (size_t n = first; n <= last; n += d_k) {
        decay = hn::Mul(decay, at(work.alpha + n));
        put(hn::Mul(decay, at(work.qk + n)), work.left + n);
        put(hn::Mul(decay, at(work.qk + k_half + n)), work.left + k_half + n);
        if (e1 != nullptr) put(decay, e1 + n);
      }
      put(decay, work.totals + block * d_k + i);
      decay = hn::Set(FloatTag(), 1.0f);
      for (size_t r = sub_block; r-- > 0;) {
        const size_t n = first + r * d_k;
        put(hn::Mul(decay, at(work.qk + k_half + n)), work.right + n);
        if (e2 != nullptr) put(decay, e2 + n);
        decay = hn::Mul(decay, at(work.alpha + n));
      }
    }
  }
}

// left from the sub-block's beginning to the chunk's; `k_sign` times the half of k.
inline void decay_left(const HeadDims& dims, const ChunkWork& work, float k_sign) {
  const size_t d_k = dims.d_k;
  std::fill(work.prefix, work.prefix + d_k, 1.0f);
  const auto sign = hn::Set(FloatTag(), k_sign);
  for (size_t block = 0; block < num_sub_blocks; ++block) {
    for (size_t r = block * sub_block; r < (block + 1) * sub_block; ++r) {
      float *q = work.left + r * d_k, *k = q + chunk * d_k;
      for (size_t i = 0; i < d_k; i += num_lanes) {
        const auto factor = at(work.prefix + i);
        put(hn::Mul(at(q + i), factor), q + i);
        put(hn::Mul(at(k + i), hn::Mul(factor, sign)), k + i);
      }
    }
    scale_columns(work.prefix, 1, d_k, work.totals + block * d_k);
  }
  std::copy_n(work.prefix, d_k, work.decay);
}

// `count` of a diagonal block's products with row i: the keys before it, decayed until i in `rows`, with k_i and with q_i.
template <size_t count>
HWY_INLINE void diagonal_products(const float* q, const float* k, const float* alpha, size_t d_k, float* rows,
                                  float* minus_a, float* aqk) {
  const FloatTag d;
  FloatVector sum_q[count], sum_k[count];
#pragma GCC unroll 4
  for (size_t j = 0; j < count; ++j) sum_q[j] = sum_k[j] = hn::Zero(d);
  for (size_t i = 0; i < d_k; i += num_lanes) {
    const auto decay = at(alpha + i), q_i = at(q + i), k_i = at(k + i);
#pragma GCC unroll 4
    for (size_t j = 0; j < count; ++j) {
      const auto key = hn::Mul(at(rows + j * d_k + i), decay);
      put(key, rows + j * d_k + i);
      sum_q[j] = hn::MulAdd(key, q_i, sum_q[j]);
      sum_k[j] = hn::MulAdd(key, k_i, sum_k[j]);
    }
  }
#pragma GCC unroll 4
  for (size_t j = 0; j < count; ++j) {
    aqk[j] = hn::GetLane(hn::SumOfLanes(d, sum_q[j]));
    minus_a[j] = -hn::GetLane(hn::SumOfLanes(d, sum_k[j]));
  }
}

// The 16 x 16 block on the diagonal, element by element: no factorisation of D_ij is safe here for every gate.
inline void diagonal_block(const HeadDims& dims, const ChunkWork& work, size_t block) {
  const FloatTag d;
  const size_t d_k = dims.d_k, first = block * sub_block;
  const float *q = work.qk + first * d_k, *k = q + chunk * d_k, *alpha = work.alpha + first * d_k;
  for (size_t i = 0; i < sub_block; ++i, q += d_k, k += d_k, alpha += d_k) {
    float* minus_a = work.minus_a + (first + i) * chunk + first;
    float* aqk = work.aqk + (first + i) * chunk + first;
    size_t j = 0;
    for (; j + 4 <= i; j += 4) diagonal_products<4>(q, k, alpha, d_k, work.rows + j * d_k, minus_a + j, aqk + j);
    for (; j < i; ++j) diagonal_products<1>(q, k, alpha, d_k, work.rows + j * d_k, minus_a + j, aqk + j);
    auto sum = hn::Zero(d);
    for (size_t n = 0; n < d_k; n += num_lanes) {
      sum = hn::MulAdd(at(q + n), at(k + n), sum);
      put(at(k + n), work.rows + i * d_k + n);
    }
    aqk[i] = hn::GetLane(hn::SumOfLanes(d, sum));
    minus_a[i] = 0.0f;
    std::fill(aqk + i + 1, aqk + sub_block, 0.0f);
    std::fill(minus_a + i + 1, minus_a + sub_block, 0.0f);
  }
}

// -A and Aqk. Leaves `right` decayed to the chunk's end. D_ij between sub-blocks J < I: left_i, the sub-blocks between, right_j.
inline void score(const HeadDims& dims, const ChunkWork& work) {
  const size_t d_k = dims.d_k;
  for (size_t block = 0; block < num_sub_blocks; ++block) {
    const size_t first = block * sub_block;
    if (block > 0) {
      float *aqk = work.aqk + first * chunk, *minus_a = work.minus_a + first * chunk;
      transposed_panels(work.right, d_k, first, d_k, work.k_panels);
      product<Left::plain>({work.left + first * d_k, d_k}, work.k_panels, d_k * panel_width, d_k, sub_block, first, aqk,
                           chunk, false);
      product<Left::plain>({work.left + (chunk + first) * d_k, d_k}, work.k_panels, d_k * panel_width, d_k, sub_block,
                           first, minus_a, chunk, false);
      for (size_t r = 0; r < sub_block; ++r) {
        float* row = minus_a + r * chunk;
        for (size_t j = 0; j < first; j += num_lanes) put(hn::Neg(at(row + j)), row + j);
      }
      scale_columns(work.right, first, d_k, work.totals + block * d_k);
    }
    diagonal_block(dims, work, block);
  }
}

// Forward substitution of one sub-block: E in place, R into its panels.
inline void solve_diagonal(const HeadDims& dims, const ChunkWork& work, size_t block) {
  const FloatTag d;
  const size_t d_v = dims.d_v, first = block * sub_block;
  const float* minus_a = work.minus_a + first * chunk + first;
  for (size_t column = 0; column < d_v; column += num_lanes) {
    float* error = work.error + first * d_v + column;
    float* r = work.r_panels + (column / panel_width * chunk + first) * panel_width + column % panel_width;
    FloatVector x[sub_block];
#pragma GCC unroll 16
    for (size_t i = 0; i < sub_block; ++i) x[i] = at(error + i * d_v);
#pragma GCC unroll 16
    for (size_t i = 0; i < sub_block; ++i) {
      const auto value = hn::Mul(x[i], hn::Set(d, work.beta[first + i]));
      put(x[i], error + i * d_v);
      put(value, r + i * panel_width);
#pragma GCC unroll 16
      for (size_t l = i + 1; l < sub_block; ++l) {
        x[l] = hn::MulAdd(hn::Set(d, minus_a[l * chunk + i]), value, x[l]);
      }
    }
  }
}

// From v and (decayed k) S: E and R.
inline void solve(const HeadDims& dims, const ChunkWork& work) {
  const size_t d_v = dims.d_v;
  const float* read = work.output + chunk * d_v;
  for (size_t n = 0; n < chunk * d_v; n += num_lanes) put(hn::Sub(at(work.v + n), at(read + n)), work.error + n);
  for (size_t block = 0; block < num_sub_blocks; ++block) {
    const size_t first = block * sub_block;
    if (block > 0) {
      product<Left::plain>({work.minus_a + first * chunk, chunk}, work.r_panels, chunk * panel_width, first, sub_block,
                           d_v, work.error + first * d_v, d_v, true);
    }
    solve_diagonal(dims, work, block);
  }
}

// The state after the chunk.
inline void advance(const HeadDims& dims, const ChunkWork& work) {
  scale_rows(work.state, dims.d_k, dims.d_v, work.decay);
  product<Left::transposed>({work.right, dims.d_k}, work.r_panels, chunk * panel_width, chunk, dims.d_k, dims.d_v,
                            work.state, dims.d_v, true);
}

// The state before a segment, or the gradient after it.
inline void load_state(const TensorView& states, bool given, const HeadDims& dims, int64_t batch, int64_t heads,
                       int64_t head, float* out) {
  const size_t size = dims.d_k * dims.d_v;
  if (given && states)
    std::copy_n(state_of(states, dims, batch, heads, head), size, out);
  else
    std::fill(out, out + size, 0.0f);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
