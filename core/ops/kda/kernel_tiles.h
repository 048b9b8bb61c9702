// Shared by the kernels of Kimi Delta Attention: where chunks lie, and products of a warp's tiles. bf16 goes through the tensor
// cores; fp32 through fused multiply-adds in the same layout of the results, so that kernels are written once.
#pragma once

#include "core/ops/gpu/device_math.h"
#include "core/ops/kda/kernels.h"

namespace lamina::ops::cuda::kda {

constexpr int threads = 256, num_warps = threads / warp_size;
constexpr int chunk = kda_chunk, sub_block = kda_sub_block, num_sub_blocks = chunk / sub_block;
constexpr int off_diagonal_rows = 96;  // (1 + 2 + 3) sub-blocks

template <class E>
constexpr int skew = 16 / static_cast<int>(sizeof(E));  // elements after a row in shared memory, against bank conflicts

// A chunk of a sequence.
struct Span {
  int64_t begin, end;
  bool first, last;                    // of its document
  bool sequence_first, sequence_last;  // then the document is the sequence's first or last
  __device__ int count() const { return static_cast<int>(end - begin); }
};

__device__ __forceinline__ int64_t num_chunks(const KdaChunks& chunks, int64_t batch) {
  return chunks.starts != nullptr ? chunks.counts[batch] : (chunks.tokens + chunk - 1) / chunk;
}
__device__ __forceinline__ Span span_of(const KdaChunks& chunks, int64_t batch, int64_t index) {
  Span span{};
  if (chunks.starts != nullptr) {
    const int32_t* table = chunks.table + batch * (chunks.tokens + 1) + index;
    const int32_t* starts = chunks.starts + batch * chunks.tokens;
    span.begin = table[0];
    span.end = table[1];
    span.first = starts[span.begin] == span.begin;
    span.last = span.end == chunks.tokens || starts[span.end] == span.end;
  } else {
    span.begin = index * chunk;
    span.end = span.begin + chunk < chunks.tokens ? span.begin + chunk : chunks.tokens;
    span.first = span.begin == 0;
    span.last = span.end == chunks.tokens;
  }
  span.sequence_first = span.begin == 0;
  span.sequence_last = span.end == chunks.tokens;
  return span;
}

// Where the state before a chunk is kept, and where what belongs to the state after it: the slot of the next chunk, which exists only
// after 64 whole tokens, or the last slot. Two chunks that need a slot never share it.
__device__ __forceinline__ int64_t slot_before(const Span& span) {
  return span.begin / chunk;
}
__device__ __forceinline__ int64_t slot_after(const Span& span, const KdaParams& p) {
  return span.sequence_last ? p.slots - 1 : span.end / chunk;
}
__device__ __forceinline__ bool has_state_before(const Span& span, const KdaParams& p) {
  return span.first ? span.sequence_first && p.initial_state != nullptr : true;
}
__device__ __forceinline__ bool has_gradient_after(const Span& span, const KdaParams& p) {
  return span.last ? span.sequence_last && p.d_final_state != nullptr : true;
}

struct Pair {
  int64_t local, batch, head;
};
__device__ __forceinline__ Pair pair_of(const KdaParams& p, int64_t local) {
  const int64_t pair = p.first_pair + local;
  return {local, pair / p.heads, pair % p.heads};
}
template <class T>
__device__ __forceinline__ T* row_of(const KdaRows& rows, const Pair& pair, int64_t token) {
  return static_cast<T*>(rows.data) + pair.batch * rows.batch + token * rows.token + pair.head * rows.head;
}

// The write strength, kept from zero so that it may be divided by; what changes is far below fp32's precision.
__device__ __forceinline__ float safe_beta(float beta) {
  return fabsf(beta) < 1e-12f ? 1e-12f : beta;
}

template <class E>
__device__ __forceinline__ float decay_of(float g) {
  return sizeof(E) == 2 ? __expf(g) : expf(g);
}

// A matrix in memory: of a left operand `inner` elements lie side by side along the depth, of a right one along the columns;
// transposed, the other way around. `in_shared`: rows are aligned to 16 bytes, in shared memory.
template <class E, bool is_transposed, bool is_in_shared>
struct Matrix {
  static constexpr bool transposed = is_transposed, in_shared = is_in_shared;
  using Element = E;
  const E* at;
  int leading;
};

__device__ __forceinline__ uint32_t two_at(const __nv_bfloat16* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}
__device__ __forceinline__ uint32_t two_apart(const __nv_bfloat16* from, int apart) {
  const uint32_t low = *reinterpret_cast<const uint16_t*>(from),
                 high = *reinterpret_cast<const uint16_t*>(from + apart);
  return low | high << 16;
}

// Rows [0, 16) and depths [depth, depth + 16) of a left operand as mma_bf16 takes them.
template <class M>
__device__ __forceinline__ void left_fragment(uint32_t (&a)[4], const M& m, int depth) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, group = lane / 4, pair = lane % 4;
  if constexpr (M::in_shared) {
    const int low = lane % 8 + lane / 16 * 8, high = lane / 8 % 2 * 8;
    if constexpr (M::transposed)
      lamina::cuda::ldmatrix_x4_trans(a, m.at + (depth + low) * m.leading + high);
    else
      lamina::cuda::ldmatrix_x4(a, m.at + (lane % 8 + high) * m.leading + depth + lane / 16 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8, column = depth + 2 * pair + i / 2 * 8;
      if constexpr (M::transposed)
        a[i] = two_apart(m.at + static_cast<int64_t>(column) * m.leading + row, m.leading);
      else
        a[i] = two_at(m.at + static_cast<int64_t>(row) * m.leading + column);
    }
  }
}
// Columns [column, column + 16) of a right operand: the fragments of two products.
template <class M>
__device__ __forceinline__ void right_fragments(uint32_t (&b)[4], const M& m, int depth, int column) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, group = lane / 4, pair = lane % 4;
  if constexpr (M::in_shared) {
    if constexpr (M::transposed)
      lamina::cuda::ldmatrix_x4(b, m.at + (column + lane % 8 + lane / 16 * 8) * m.leading + depth + lane / 8 % 2 * 8);
    else
      lamina::cuda::ldmatrix_x4_trans(
          b, m.at + (depth + lane % 8 + lane / 8 % 2 * 8) * m.leading + column + lane / 16 * 8);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = depth + 2 * pair + i % 2 * 8, n = column + group + i / 2 * 8;
      if constexpr (M::transposed)
        b[i] = two_at(m.at + static_cast<int64_t>(n) * m.leading + row);
      else
        b[i] = two_apart(m.at + static_cast<int64_t>(row) * m.leading + n, m.leading);
    }
  }
}

// sums [16, 8 n] += a b over `depth`, a multiple of 16; by a whole warp, in the layout of mma_bf16's results.
template <int n, class A, class B>
__device__ __forceinline__ void multiply(float (&sums)[n][4], const A& a, const B& b, int depth) {
  static_assert(n % 2 == 0);
  if constexpr (sizeof(typename A::Element) == 2) {
#pragma unroll 4
    for (int k = 0; k < depth; k += 16) {
      uint32_t left[4];
      left_fragment(left, a, k);
#pragma unroll
      for (int j = 0; j < n; j += 2) {
        uint32_t right[4];
        right_fragments(right, b, k, 8 * j);
        lamina::cuda::mma_bf16(sums[j], left, {right[0], right[1]});
        lamina::cuda::mma_bf16(sums[j + 1], left, {right[2], right[3]});
      }
    }
  } else {
    const int lane = static_cast<int>(threadIdx.x) % warp_size, group = lane / 4, pair = lane % 4;
    const int64_t a_row = A::transposed ? 1 : a.leading, a_depth = A::transposed ? a.leading : 1;
    const int64_t b_depth = B::transposed ? 1 : b.leading, b_column = B::transposed ? b.leading : 1;
    for (int k = 0; k < depth; ++k) {
      const float low = a.at[group * a_row + k * a_depth], high = a.at[(group + 8) * a_row + k * a_depth];
#pragma unroll
      for (int j = 0; j < n; ++j) {
        const float* from = b.at + k * b_depth + (8 * j + 2 * pair) * b_column;
        const float first = from[0], second = from[b_column];
        sums[j][0] = fmaf(low, first, sums[j][0]);
        sums[j][1] = fmaf(low, second, sums[j][1]);
        sums[j][2] = fmaf(high, first, sums[j][2]);
        sums[j][3] = fmaf(high, second, sums[j][3]);
      }
    }
  }
}

// run(row, column, sum) for what a thread holds of a tile.
template <int n, class Run>
__device__ __forceinline__ void each_sum(float (&sums)[n][4], Run&& run) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, group = lane / 4, pair = lane % 4;
#pragma unroll
  for (int j = 0; j < n; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) run(group + i / 2 * 8, 8 * j + 2 * pair + i % 2, sums[j][i]);
  }
}
// run(row, column, first, second) for two columns side by side.
template <int n, class Run>
__device__ __forceinline__ void each_two(float (&sums)[n][4], Run&& run) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, group = lane / 4, pair = lane % 4;
#pragma unroll
  for (int j = 0; j < n; ++j) {
    run(group, 8 * j + 2 * pair, sums[j][0], sums[j][1]);
    run(group + 8, 8 * j + 2 * pair, sums[j][2], sums[j][3]);
  }
}
template <class E>
__device__ __forceinline__ void put_two(E* to, float first, float second) {  // aligned to two elements
  *reinterpret_cast<Pack<E, 2>*>(to) = {{from_float<E>(first), from_float<E>(second)}};
}
template <int n>
__device__ __forceinline__ void clear(float (&sums)[n][4]) {
#pragma unroll
  for (int j = 0; j < n; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] = 0.0f;
  }
}

// Cuts shared memory into arrays; on the host, of no memory, it only counts bytes.
struct Carver {
  unsigned char* base;
  size_t used = 0;
  template <class T>
  __host__ __device__ __forceinline__ T* take(int count) {
    T* taken = reinterpret_cast<T*>(base + used);
    used += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return taken;
  }
};
template <class Shared, class... Args>
size_t shared_bytes(const Args&... args) {
  alignas(16) unsigned char nothing[16];  // only a place to count from
  Carver carver{nothing};
  const Shared shared(carver, args...);
  return carver.used;
}

// One block per pair and chunk, as far as the grid reaches: packed documents may make more chunks, which blocks then share.
inline dim3 chunk_grid(const KdaParams& p) {
  const int64_t chunks = (p.chunks.tokens + chunk - 1) / chunk;
  return {static_cast<unsigned>(p.num_pairs), static_cast<unsigned>(chunks < 65535 ? chunks : 65535), 1};
}

// [64, width] of rows `leading` apart to shared memory without waiting; rows from `count` on become zeros.
template <class E>
__device__ __forceinline__ void stage_rows(E* to, int to_leading, const E* from, int64_t from_leading, int width,
                                           int count) {
  const int packs = width * static_cast<int>(sizeof(E)) / 16, step = 16 / static_cast<int>(sizeof(E));
  for (int n = static_cast<int>(threadIdx.x); n < chunk * packs; n += threads) {
    const int row = n / packs, column = n % packs * step;
    const bool valid = row < count;
    lamina::cuda::cp_async_16(to + row * to_leading + column, from + (valid ? row * from_leading : 0) + column,
                              valid ? 16 : 0);
  }
}

}  // namespace lamina::ops::cuda::kda
