// Tiles of bf16 rows in shared memory, and a warp's way from them to the tensor cores.
//
// Rows are 16 bytes longer than their width: an odd number of 16-byte chunks, so eight rows' chunks of one column
// fall into different banks and ldmatrix does not conflict. (A swizzle would save the 4 %, but costs a register for
// every pattern of its bits; the accumulators leave none.) Widths are multiples of 64; what a head lacks is zero.
#pragma once

#include "core/ops/attention/kernels.h"
#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {

using lamina::cuda::cp_async_16;
using lamina::cuda::cp_async_commit;
using lamina::cuda::cp_async_wait;
using lamina::cuda::ldmatrix_x4;
using lamina::cuda::ldmatrix_x4_trans;
using lamina::cuda::mma_bf16;

using Bf16 = __nv_bfloat16;

// Elements of a row in shared memory, and of a tile.
__host__ __device__ constexpr int pitch(int width) {
  return width + 8;
}
__host__ __device__ constexpr int tile_size(int rows, int width) {
  return rows * pitch(width);
}

using Chunk = Pack<Bf16, 8>;  // 16 bytes

// One head of one sequence; 16-byte aligned, as its step and width are.
struct HeadRows {
  Bf16* data;
  int64_t step;
  int num_rows, width;
};

__device__ __forceinline__ HeadRows head_rows(const AttentionTensor& t, const AttentionParams& p, int width) {
  return {static_cast<Bf16*>(t.data) + blockIdx.z * t.batch + blockIdx.y * t.head, t.token, p.tokens, width};
}

// The same of the forward's keys and values.
__device__ __forceinline__ HeadRows key_rows(const AttentionTensor& t, const AttentionParams& p, int width) {
  HeadRows rows = head_rows(t, p, width);
  rows.num_rows = p.keys;
  return rows;
}

// `rows` rows from `first_row` on, zeros beyond the sequence and the head, by asynchronous copies. Eight threads read
// 128 bytes of a row.
template <int width, int rows, int threads>
__device__ __forceinline__ void load_tile(Bf16* tile, const HeadRows& from, int first_row) {
  constexpr int rows_at_once = threads / 8, pitch_ = pitch(width);
  static_assert(rows % rows_at_once == 0);
  const int row0 = static_cast<int>(threadIdx.x) / 8, column0 = static_cast<int>(threadIdx.x) % 8 * 8;
  Bf16* const to = tile + row0 * pitch_ + column0;
  const Bf16* source = from.data + (first_row + row0) * from.step + column0;
  const int rows_left = from.num_rows - first_row - row0, columns_left = from.width - column0;
#pragma unroll 1  // hoisted addresses would take the registers that the accumulators need
  for (int row = 0; row < rows; row += rows_at_once) {
#pragma unroll
    for (int c = 0; c < width; c += 64)
      cp_async_16(to + row * pitch_ + c, source + c, row < rows_left && c < columns_left ? 16 : 0);
    source += rows_at_once * from.step;
  }
}

// The other way: `rows` rows of a tile by `threads` threads, of which the caller is number `thread`.
template <int width, int rows, int threads>
__device__ __forceinline__ void store_tile(const Bf16* tile, const HeadRows& to, int first_row, int thread) {
  constexpr int chunks = width / 8;
  static_assert(rows * chunks % threads == 0);
#pragma unroll 4
  for (int n = thread; n < rows * chunks; n += threads) {
    const int row = n / chunks, column = n % chunks * 8, token = first_row + row;
    if (token < to.num_rows && column < to.width)
      *reinterpret_cast<Chunk*>(to.data + token * to.step + column) =
          *reinterpret_cast<const Chunk*>(tile + row * pitch(width) + column);
  }
}

// Four 8x8 matrices form 16x16; a lane names one row of one of them. `down`: the second matrix lies below the first
// (an operand a, or the transpose of an operand b); `right`: beside it (an operand b, or the transpose of an operand
// a).
enum class Second { down, right };

template <int width>
class Fragments {
 public:
  __device__ __forceinline__ Fragments(const Bf16* tile, int row0, int column0, Second second) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size, odd = lane / 8 % 2, high = lane / 16;
    const int below = second == Second::down ? odd : high, beside = second == Second::down ? high : odd;
    at_ = tile + (row0 + below * 8 + lane % 8) * pitch(width) + column0 + beside * 8;
  }
  // row, column: relative to the corner, multiples of 8, constants.
  __device__ __forceinline__ void load(uint32_t (&r)[4], int row, int column) const {
    ldmatrix_x4(r, at_ + row * pitch(width) + column);
  }
  __device__ __forceinline__ void load_trans(uint32_t (&r)[4], int row, int column) const {
    ldmatrix_x4_trans(r, at_ + row * pitch(width) + column);
  }

 private:
  const Bf16* at_;
};

// acc[g][2 n + half] += sum over steps of a(g) b(n): 16-row groups of a, 16-column groups of b, 16 deep a step.
// load_a(fragment, g, step), load_b(fragment, n, step).
template <int steps, int groups, int columns8, class LoadA, class LoadB>
__device__ __forceinline__ void multiply_add(float (&acc)[groups][columns8][4], LoadA&& load_a, LoadB&& load_b) {
#pragma unroll
  for (int step = 0; step < steps; ++step) {
    uint32_t a[groups][4];
#pragma unroll
    for (int g = 0; g < groups; ++g) load_a(a[g], g, step);
#pragma unroll
    for (int n = 0; n < columns8 / 2; ++n) {
      uint32_t b[4];
      load_b(b, n, step);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int g = 0; g < groups; ++g) {
        mma_bf16(acc[g][2 * n], a[g], left);
        mma_bf16(acc[g][2 * n + 1], a[g], right);
      }
    }
  }
}

template <int groups, int columns8>
__device__ __forceinline__ void clear(float (&acc)[groups][columns8][4]) {
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[g][n][e] = 0.0f;
}

// A warp's sums, scaled, into a tile as bf16.
template <int width, int groups, int columns8>
__device__ __forceinline__ void to_tile(Bf16* tile, const float (&acc)[groups][columns8][4], float scale, int row0,
                                        int column0) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Bf16* const at = tile + (row0 + lane / 4) * pitch(width) + column0 + 2 * (lane % 4);
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<uint32_t*>(at + (16 * g + 8 * r) * pitch(width) + 8 * n) =
            pack_bf16(scale * acc[g][n][2 * r], scale * acc[g][n][2 * r + 1]);
}

// Softmax in powers of two of |scale| s: signs of the scale are put into s, and a zero becomes a number that makes
// all logits vanish beside 1 without making masked ones (-infinity) NaN.
struct Exponent {
  float factor;  // |scale| / ln 2
  bool negate;
};
__device__ __forceinline__ Exponent exponent_of(float scale) {
  constexpr float log2_e = 1.4426950408889634f;
  return {fmaxf(fabsf(scale) * log2_e, 1e-30f), scale < 0.0f};
}
template <int groups, int columns8>
__device__ __forceinline__ void negate(float (&acc)[groups][columns8][4]) {
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[g][n][e] = -acc[g][n][e];
}

// Of the token's document; 0 beyond the sequence.
__device__ __forceinline__ int start_of(const AttentionParams& p, int token) {
  if (p.document_starts == nullptr || token >= p.tokens) return 0;
  return p.document_starts[static_cast<int64_t>(blockIdx.z) * p.tokens + token];
}

}  // namespace lamina::ops::cuda
