#include "core/ops/embedding/kernels.h"

#include "core/ops/gpu/packs.h"

namespace lamina::ops::cuda {
namespace {

constexpr int most_threads = 256;

// A block copies a row, or a part of a wide one.
template <class T, bool aligned>
__global__ void __launch_bounds__(most_threads) forward_kernel(const EmbeddingForwardParams p) {
  constexpr int N = pack_of<T>;
  const int64_t row = blockIdx.x;
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N, left = p.dim - at;
  if (left <= 0) return;
  const T* const from = static_cast<const T*>(p.table) + static_cast<int64_t>(p.tokens[row]) * p.table_stride + at;
  T* const to = static_cast<T*>(p.y) + row * p.y_stride + at;
  if (aligned && left >= N) {
    *reinterpret_cast<Pack<T, N>*>(to) = *reinterpret_cast<const Pack<T, N>*>(from);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < left) to[i] = from[i];
  }
}

__device__ __forceinline__ int64_t position() {
  return static_cast<int64_t>(blockIdx.x) * most_threads + threadIdx.x;
}

__global__ void __launch_bounds__(most_threads) count_kernel(const TokenPositionsParams p) {
  const int64_t at = position();
  if (at < p.count) p.slots[at] = atomicAdd(p.counts + p.tokens[at], 1);
}

// Whoever came first books the token's share.
__global__ void __launch_bounds__(most_threads) book_kernel(const TokenPositionsParams p) {
  const int64_t at = position();
  if (at >= p.count || p.slots[at] != 0) return;
  const int32_t token = p.tokens[at];
  p.starts[token] = atomicAdd(p.cursor, p.counts[token]);
}

__global__ void __launch_bounds__(most_threads) place_kernel(const TokenPositionsParams p) {
  const int64_t at = position();
  if (at < p.count) p.placed[p.starts[p.tokens[at]] + p.slots[at]] = static_cast<int32_t>(at);
}

// A position's rank is the number of smaller ones in its share.
__global__ void __launch_bounds__(most_threads) sort_kernel(const TokenPositionsParams p) {
  const int64_t at = position();
  if (at >= p.count) return;
  const int32_t token = p.tokens[at], count = p.counts[token];
  const int32_t* const share = p.placed + p.starts[token];
  int32_t rank = 0;
#pragma unroll 8
  for (int32_t i = 0; i < count; ++i) rank += share[i] < at ? 1 : 0;
  p.sorted[p.starts[token] + rank] = static_cast<int32_t>(at);
}

// One block, or one per part of a wide row, for each token that occurs; a thread adds its columns of all the token's rows, so
// that they are added in order, `at_once` loads ahead of the sum.
template <class T, bool aligned>
__global__ void __launch_bounds__(most_threads) add_rows_kernel(const EmbeddingBackwardParams p) {
  constexpr int N = pack_of<T>, at_once = 32 / N;
  if (p.positions.slots[blockIdx.x] != 0) return;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N, left = p.dim - column;
  if (left <= 0) return;
  const int32_t token = p.positions.tokens[blockIdx.x], count = p.positions.counts[token];
  const int32_t* const rows = p.positions.sorted + p.positions.starts[token];
  const T* const dy = static_cast<const T*>(p.dy) + column;
  float* const to = p.dtable + token * p.dtable_stride + column;
  float sum[N], x[at_once][N];
  load_pack<aligned>(sum, to, left);
  int32_t first = 0;
  for (; first + at_once <= count; first += at_once) {
#pragma unroll
    for (int k = 0; k < at_once; ++k) load_pack<aligned>(x[k], dy + rows[first + k] * p.dy_stride, left);
#pragma unroll
    for (int k = 0; k < at_once; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += x[k][i];
  }
  for (; first < count; ++first) {
    load_pack<aligned>(x[0], dy + rows[first] * p.dy_stride, left);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += x[0][i];
  }
  store_pack<aligned>(to, sum, left);
}

struct RowShape {
  dim3 grid;
  unsigned threads;
};
RowShape shape_of(int64_t rows, int64_t dim, int64_t pack) {
  const int64_t packs = (dim + pack - 1) / pack;
  const auto threads = static_cast<unsigned>(round_up_to_warps(packs, most_threads));
  return {dim3(static_cast<unsigned>(rows), blocks_for(packs, threads), 1), threads};
}

}  // namespace

void launch_embedding_forward(const EmbeddingForwardParams& p, cudaStream_t stream) {
  const int64_t size = size_of(p.dtype);
  const bool is_aligned = are_aligned({p.table, p.y}, {p.table_stride * size, p.y_stride * size});
  visit_dtype(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      const RowShape shape = shape_of(p.count, p.dim, pack_of<T>);
      launch(forward_kernel<T, decltype(aligned)::value>, shape.grid, shape.threads, 0, stream, p);
    });
  });
}

void launch_token_positions(const TokenPositionsParams& p, cudaStream_t stream) {
  const unsigned blocks = blocks_for(p.count, most_threads);
  launch(count_kernel, blocks, most_threads, 0, stream, p);
  launch(book_kernel, blocks, most_threads, 0, stream, p);
  launch(place_kernel, blocks, most_threads, 0, stream, p);
  launch(sort_kernel, blocks, most_threads, 0, stream, p);
}

void launch_embedding_backward(const EmbeddingBackwardParams& p, cudaStream_t stream) {
  const bool is_aligned = are_aligned({p.dy, p.dtable}, {p.dy_stride * size_of(p.dtype), p.dtable_stride * 4});
  visit_dtype(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      const RowShape shape = shape_of(p.positions.count, p.dim, pack_of<T>);
      launch(add_rows_kernel<T, decltype(aligned)::value>, shape.grid, shape.threads, 0, stream, p);
    });
  });
}

}  // namespace lamina::ops::cuda
