// Attention without tensor cores: fp32 inputs, whose products must be fp32, and bf16 heads wider than 256. Any
// widths, strides and alignment. A block has 16 x 16 threads and 64 queries or keys; a thread holds 4 x 4 of the 64 x
// 64 pairs and 4 x 8 of up to 128 columns of the result (4 x 4 of 64 where that is all). Wider results are cut into
// columns by several blocks, which compute the pairs anew. Sums have one order: no atomics.
//
// Limit: fp32 FMA, 2 (d_qk + d_v) FLOP a pair forward and 2 (5 d_qk + 3 d_v) backward at widths up to 128 (dk, dv and
// dq each compute their pairs), of 67 TFLOP/s on H200. An inner step takes 8 loads from shared memory for 16 products
// (pairs) or 12 for 32, so the shared memory's 128 bytes a cycle hold it to about half of that. Training runs in
// bf16; this is for checking.
//
// Here too: delta and lse for the backward kernels, and the largest logit of a head.
#include "core/ops/attention/kernels.h"
#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {
namespace {

constexpr int tile = attention_tile, side = 16, num_threads = side * side, per_side = tile / side;
constexpr int depth = 32, most_columns = 128;

// Shared memory: pairs of a tile, and what is multiplied.
struct Shared {
  float pairs[tile][tile + 1];
  union {
    float operands[2][tile][depth + 1];
    float rows[depth][most_columns];
  };
};

template <class T>
struct Rows {
  T* data;
  int64_t step;
  int num_rows, width;
};
template <class T>
__device__ __forceinline__ Rows<T> rows_of(const AttentionTensor& t, const AttentionParams& p, int width) {
  return {static_cast<T*>(t.data) + blockIdx.z * t.batch + blockIdx.y * t.head, t.token, p.tokens, width};
}
// The same of the forward's keys and values.
template <class T>
__device__ __forceinline__ Rows<T> key_rows(const AttentionTensor& t, const AttentionParams& p, int width) {
  Rows<T> rows = rows_of<T>(t, p, width);
  rows.num_rows = p.keys;
  return rows;
}
template <class T>
__device__ __forceinline__ float value(const Rows<T>& rows, int row, int column) {
  return row < rows.num_rows && column < rows.width ? to_float(rows.data[row * rows.step + column]) : 0.0f;
}

// One for a thread: rows down + 16 r, columns along + 16 c.
struct Place {
  int down = static_cast<int>(threadIdx.x) / side, along = static_cast<int>(threadIdx.x) % side;
};

// pairs = rows a0 on of a times rows b0 on of b.
template <class T>
__device__ void multiply_pairs(float (&pairs)[per_side][per_side], const Rows<T>& a, int a0, const Rows<T>& b, int b0,
                               Shared& shared) {
  const Place at;
  for (auto& row : pairs)
    for (float& pair : row) pair = 0.0f;
  for (int d0 = 0; d0 < a.width; d0 += depth) {
    __syncthreads();
    for (int n = static_cast<int>(threadIdx.x); n < tile * depth; n += num_threads) {
      shared.operands[0][n / depth][n % depth] = value(a, a0 + n / depth, d0 + n % depth);
      shared.operands[1][n / depth][n % depth] = value(b, b0 + n / depth, d0 + n % depth);
    }
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < depth; ++d) {
      float left[per_side], right[per_side];
#pragma unroll
      for (int r = 0; r < per_side; ++r) {
        left[r] = shared.operands[0][at.down + side * r][d];
        right[r] = shared.operands[1][at.along + side * r][d];
      }
#pragma unroll
      for (int r = 0; r < per_side; ++r)
#pragma unroll
        for (int c = 0; c < per_side; ++c) pairs[r][c] = fmaf(left[r], right[c], pairs[r][c]);
    }
  }
}

// sums += the shared pairs (transposed: their columns) times columns column0 on of the rows x0 on.
template <bool transposed, int columns, class T>
__device__ void add_rows(float (&sums)[per_side][columns / side], const Rows<T>& x, int x0, int column0,
                         Shared& shared) {
  const Place at;
  for (int j0 = 0; j0 < tile; j0 += depth) {
    __syncthreads();
    for (int n = static_cast<int>(threadIdx.x); n < depth * columns; n += num_threads)
      shared.rows[n / columns][n % columns] = value(x, x0 + j0 + n / columns, column0 + n % columns);
    __syncthreads();
#pragma unroll 4
    for (int j = 0; j < depth; ++j) {
      float pair[per_side], row[columns / side];
#pragma unroll
      for (int r = 0; r < per_side; ++r) {
        const int own = at.down + side * r;
        pair[r] = transposed ? shared.pairs[j0 + j][own] : shared.pairs[own][j0 + j];
      }
#pragma unroll
      for (int c = 0; c < columns / side; ++c) row[c] = shared.rows[j][at.along + side * c];
#pragma unroll
      for (int r = 0; r < per_side; ++r)
#pragma unroll
        for (int c = 0; c < columns / side; ++c) sums[r][c] = fmaf(pair[r], row[c], sums[r][c]);
    }
  }
}

// The caller's pairs become visible to all after the barrier that add_rows begins with; what was there before has
// been used.
__device__ __forceinline__ void share(const float (&pairs)[per_side][per_side], Shared& shared) {
  const Place at;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < per_side; ++r)
#pragma unroll
    for (int c = 0; c < per_side; ++c) shared.pairs[at.down + side * r][at.along + side * c] = pairs[r][c];
}

template <int columns, class T>
__device__ __forceinline__ void store(const Rows<T>& to, const float (&sums)[per_side][columns / side],
                                      const float (&scale)[per_side], int first_row, int column0) {
  const Place at;
#pragma unroll
  for (int r = 0; r < per_side; ++r)
#pragma unroll
    for (int c = 0; c < columns / side; ++c) {
      const int row = first_row + at.down + side * r, column = column0 + at.along + side * c;
      if (row < to.num_rows && column < to.width)
        to.data[row * to.step + column] = from_float<T>(scale[r] * sums[r][c]);
    }
}

__device__ __forceinline__ int start_of(const AttentionParams& p, int token) {
  if (p.document_starts == nullptr || token >= p.tokens) return 0;
  return p.document_starts[static_cast<int64_t>(blockIdx.z) * p.tokens + token];
}

__device__ __forceinline__ float half_warp_max(float x) {
#pragma unroll
  for (int offset = side / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(full_warp, x, offset));
  return x;
}
__device__ __forceinline__ float half_warp_sum(float x) {
#pragma unroll
  for (int offset = side / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(full_warp, x, offset);
  return x;
}

constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;

// Of the thread's queries: what the online softmax carries.
struct Softmax {
  float largest[per_side], sum[per_side];
};

// Scales and masks the pairs and turns them into probabilities relative to the largest logit so far.
template <int columns>
__device__ __forceinline__ void softmax_step(float (&s)[per_side][per_side], Softmax& state,
                                             float (&o)[per_side][columns / side], const AttentionParams& p,
                                             int first_query, int first_key) {
  const Place at;
#pragma unroll
  for (int r = 0; r < per_side; ++r) {
    const int i = first_query + at.down + side * r, start = start_of(p, i), last = i + p.keys - p.tokens;
    float largest = -INFINITY;
#pragma unroll
    for (int c = 0; c < per_side; ++c) {
      const int j = first_key + at.along + side * c;
      s[r][c] = j > last || j < start ? -INFINITY : s[r][c] * p.scale;
      largest = fmaxf(largest, s[r][c]);
    }
    largest = fmaxf(state.largest[r], half_warp_max(largest));
    const float base = largest == -INFINITY ? 0.0f : largest;  // a row without a key yet stays zero
    const float rescale = exp2f(log2_e * (state.largest[r] - base));
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < per_side; ++c) sum += s[r][c] = exp2f(log2_e * (s[r][c] - base));
    state.largest[r] = largest;
    state.sum[r] = fmaf(state.sum[r], rescale, sum);
#pragma unroll
    for (int c = 0; c < columns / side; ++c) o[r][c] *= rescale;
  }
}

template <class T, int columns>
__global__ void __launch_bounds__(num_threads) forward(const AttentionParams p, int blocks_of_columns) {
  LAMINA_DYNAMIC_SHARED(Shared, shared);
  const Place at;
  const int block = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int first_query = block / blocks_of_columns * tile, column0 = block % blocks_of_columns * columns;
  const int last_key = min(first_query + tile, p.tokens) - 1 + p.keys - p.tokens;
  const auto q = rows_of<T>(p.q, p, p.d_qk), k = key_rows<T>(p.k, p, p.d_qk), v = key_rows<T>(p.v, p, p.d_v);
  float o[per_side][columns / side] = {};
  Softmax state;
  for (int r = 0; r < per_side; ++r) state.largest[r] = -INFINITY, state.sum[r] = 0.0f;
  for (int key = start_of(p, first_query) / tile * tile; key <= last_key; key += tile) {
    float s[per_side][per_side];
    multiply_pairs(s, q, first_query, k, key, *shared);
    softmax_step<columns>(s, state, o, p, first_query, key);
    share(s, *shared);
    add_rows<false, columns>(o, v, key, column0, *shared);
  }
  float inverse[per_side], largest = -INFINITY;
  for (int r = 0; r < per_side; ++r) {
    const int i = first_query + at.down + side * r;
    const float sum = half_warp_sum(state.sum[r]);
    inverse[r] = 1.0f / sum;
    if (i >= p.tokens) continue;
    largest = fmaxf(largest, state.largest[r]);
    if (column0 == 0 && at.along == 0)
      p.lse[(static_cast<int64_t>(blockIdx.z) * p.heads + blockIdx.y) * p.tokens + i] =
          state.largest[r] + ln_2 * log2f(sum);
  }
  store<columns>(rows_of<T>(p.o, p, p.d_v), o, inverse, first_query, column0);
  if (p.max_logit == nullptr || column0 != 0) return;
  __syncthreads();
  if (at.along == 0) shared->pairs[at.down][0] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int n = 0; n < side; ++n) largest = fmaxf(largest, shared->pairs[n][0]);
  p.tile_max[(static_cast<int64_t>(blockIdx.z) * p.heads + blockIdx.y) * p.tiles + first_query / tile] = largest;
}

// P, or with `gradient` dS, of a tile of pairs, shared with the block.
template <class T>
__device__ __forceinline__ void share_pairs(const AttentionParams& p, int first_query, int first_key, bool gradient,
                                            Shared& shared) {
  const Place at;
  const auto q = rows_of<T>(p.q, p, p.d_qk), k = rows_of<T>(p.k, p, p.d_qk);
  const int64_t row0 =
      (static_cast<int64_t>(blockIdx.z) * p.heads + blockIdx.y) * p.tiles * tile + first_query + at.down;
  float s[per_side][per_side];
  multiply_pairs(s, q, first_query, k, first_key, shared);
#pragma unroll
  for (int r = 0; r < per_side; ++r) {
    const int i = first_query + at.down + side * r, start = start_of(p, i);
    const float lse2 = p.lse2[row0 + side * r];
#pragma unroll
    for (int c = 0; c < per_side; ++c) {
      const int j = first_key + at.along + side * c;
      s[r][c] = j > i || j < start ? 0.0f : exp2f(fmaf(s[r][c], p.scale * log2_e, -lse2));
    }
  }
  if (gradient) {
    float dp[per_side][per_side];
    multiply_pairs(dp, rows_of<T>(p.d_o, p, p.d_v), first_query, rows_of<T>(p.v, p, p.d_v), first_key, shared);
#pragma unroll
    for (int r = 0; r < per_side; ++r)
#pragma unroll
      for (int c = 0; c < per_side; ++c) s[r][c] *= dp[r][c] - p.delta[row0 + side * r];
  }
  share(s, shared);
}

// A block's columns are of dk (the first `blocks_of_dk`) or of dv.
template <class T, int columns>
__global__ void __launch_bounds__(num_threads)
    keys_gradients(const AttentionParams p, int blocks_of_dk, int blocks_of_columns) {
  LAMINA_DYNAMIC_SHARED(Shared, shared);
  const int block = static_cast<int>(blockIdx.x), first_key = block / blocks_of_columns * tile;
  const int part = block % blocks_of_columns;
  const bool is_dk = part < blocks_of_dk;
  const int column0 = (is_dk ? part : part - blocks_of_dk) * columns;
  const auto source = is_dk ? rows_of<T>(p.q, p, p.d_qk) : rows_of<T>(p.d_o, p, p.d_v);
  float sums[per_side][columns / side] = {}, scale[per_side];
  for (float& factor : scale) factor = is_dk ? p.scale : 1.0f;
  for (int query = first_key; query < p.tokens && start_of(p, query) < first_key + tile; query += tile) {
    share_pairs<T>(p, query, first_key, is_dk, *shared);
    add_rows<true, columns>(sums, source, query, column0, *shared);
  }
  store<columns>(is_dk ? rows_of<T>(p.dk, p, p.d_qk) : rows_of<T>(p.dv, p, p.d_v), sums, scale, first_key, column0);
}

template <class T, int columns>
__global__ void __launch_bounds__(num_threads) queries_gradient(const AttentionParams p, int blocks_of_columns) {
  LAMINA_DYNAMIC_SHARED(Shared, shared);
  const int block = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int first_query = block / blocks_of_columns * tile, column0 = block % blocks_of_columns * columns;
  const int last_query = min(first_query + tile, p.tokens) - 1;
  float sums[per_side][columns / side] = {}, scale[per_side];
  for (float& factor : scale) factor = p.scale;
  for (int key = start_of(p, first_query) / tile * tile; key <= last_query; key += tile) {
    share_pairs<T>(p, first_query, key, true, *shared);
    add_rows<false, columns>(sums, rows_of<T>(p.k, p, p.d_qk), key, column0, *shared);
  }
  store<columns>(rows_of<T>(p.dq, p, p.d_qk), sums, scale, first_query, column0);
}

// 16 lanes for a query. Limit: bytes moved, d_o and o once.
template <class T, int width>
__global__ void __launch_bounds__(num_threads) statistics(const AttentionParams p) {
  const int query = static_cast<int>(blockIdx.x) * side + static_cast<int>(threadIdx.x) / side;
  const int lane = static_cast<int>(threadIdx.x) % side;
  const int64_t head = static_cast<int64_t>(blockIdx.z) * p.heads + blockIdx.y;
  float sum = 0.0f;
  if (query < p.tokens) {
    const auto o = rows_of<const T>(p.o, p, p.d_v), d_o = rows_of<const T>(p.d_o, p, p.d_v);
    for (int d = lane * width; d < p.d_v; d += side * width) {
      const auto a = *reinterpret_cast<const Pack<T, width>*>(o.data + query * o.step + d);
      const auto b = *reinterpret_cast<const Pack<T, width>*>(d_o.data + query * d_o.step + d);
#pragma unroll
      for (int n = 0; n < width; ++n) sum = fmaf(to_float(a.at[n]), to_float(b.at[n]), sum);
    }
  }
  sum = half_warp_sum(sum);
  if (lane != 0) return;
  const int64_t row = head * p.tiles * tile + query;
  p.delta[row] = sum;
  p.lse2[row] = query < p.tokens ? log2_e * p.lse[head * p.tokens + query] : INFINITY;
}

__global__ void __launch_bounds__(warp_size) max_logit(const AttentionParams p) {
  const int64_t head = static_cast<int64_t>(blockIdx.y) * p.heads + blockIdx.x;
  float largest = -INFINITY;
  for (int n = static_cast<int>(threadIdx.x); n < p.tiles; n += warp_size)
    largest = fmaxf(largest, p.tile_max[head * p.tiles + n]);
  largest = warp_max(largest);
  if (threadIdx.x == 0) p.max_logit[head] = largest;
}

dim3 heads_grid(int64_t blocks, const AttentionParams& p) {
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
}
int blocks_of(int width, int columns) {
  return (width + columns - 1) / columns;
}

template <class T, int columns>
void forward_typed(const AttentionParams& p, cudaStream_t stream) {
  const int parts =
      blocks_of(p.d_v > 0 ? p.d_v : 1, columns);  // lse and the largest logit are wanted without values too
  launch(forward<T, columns>, heads_grid(int64_t{p.tiles} * parts, p), dim3(num_threads), sizeof(Shared), stream, p,
         parts);
}

template <class T, int columns>
void backward_typed(const AttentionParams& p, cudaStream_t stream) {
  const int dk = blocks_of(p.d_qk, columns), all = dk + blocks_of(p.d_v, columns);
  launch(keys_gradients<T, columns>, heads_grid(int64_t{p.tiles} * all, p), dim3(num_threads), sizeof(Shared), stream,
         p, dk, all);
  launch(queries_gradient<T, columns>, heads_grid(int64_t{p.tiles} * dk, p), dim3(num_threads), sizeof(Shared), stream,
         p, dk);
}

template <class T>
void statistics_typed(const AttentionParams& p, cudaStream_t stream) {
  const dim3 grid = heads_grid(int64_t{p.tiles} * (tile / side), p);
  constexpr int width = 16 / static_cast<int>(sizeof(T));
  if (p.o.packs && p.d_o.packs) return launch(statistics<T, width>, grid, dim3(num_threads), 0, stream, p);
  launch(statistics<T, 1>, grid, dim3(num_threads), 0, stream, p);
}

}  // namespace

void launch_attention_forward_plain(const AttentionParams& p, cudaStream_t stream) {
  if (p.bf16) return forward_typed<__nv_bfloat16, most_columns>(p, stream);
  p.d_v <= 64 ? forward_typed<float, 64>(p, stream) : forward_typed<float, most_columns>(p, stream);
}

void launch_attention_backward_plain(const AttentionParams& p, cudaStream_t stream) {
  if (p.bf16) return backward_typed<__nv_bfloat16, most_columns>(p, stream);
  p.d_qk <= 64 && p.d_v <= 64 ? backward_typed<float, 64>(p, stream) : backward_typed<float, most_columns>(p, stream);
}

void launch_attention_statistics(const AttentionParams& p, cudaStream_t stream) {
  p.bf16 ? statistics_typed<__nv_bfloat16>(p, stream) : statistics_typed<float>(p, stream);
}

void launch_attention_max_logit(const AttentionParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
  launch(max_logit, grid, dim3(warp_size), 0, stream, p);
}

}  // namespace lamina::ops::cuda
