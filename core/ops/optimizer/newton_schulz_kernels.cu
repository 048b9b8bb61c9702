#include "core/ops/optimizer/newton_schulz_kernels.h"

#include "core/ops/gpu/packs.h"

namespace lamina::ops::cuda {
namespace {

constexpr int threads = 256, N = 4, packs = 8;
constexpr int64_t part = int64_t{threads} * N * packs;  // elements that a block squares

// grid: parts of a matrix, matrices
template <bool aligned>
__global__ void __launch_bounds__(threads) square_kernel(const NormaliseParams p) {
  __shared__ float shared[33];
  const float* const x = p.x + blockIdx.y * p.size;
  float value[packs][N], sum = 0;
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int64_t at = blockIdx.x * part + (k * threads + static_cast<int>(threadIdx.x)) * N;
    load_pack<aligned>(value[k], x + at, p.size - at);
  }
#pragma unroll
  for (int k = 0; k < packs; ++k)
#pragma unroll
    for (int i = 0; i < N; ++i) sum += value[k][i] * value[k][i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) p.partial[static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

// Every block adds the matrix' parts for itself: they are few, and in cache.
template <class T, bool aligned>
__global__ void __launch_bounds__(threads) divide_kernel(const NormaliseParams p) {
  __shared__ float shared[33];
  const float* const partial = p.partial + static_cast<int64_t>(blockIdx.y) * gridDim.x;
  float sum = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += threads) sum += partial[i];
  const float factor = 1.0f / (sqrtf(block_sum(sum, shared)) + 1e-7f);
  const int64_t matrix = blockIdx.y * p.size;
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int64_t at = blockIdx.x * part + (k * threads + static_cast<int>(threadIdx.x)) * N, left = p.size - at;
    float x[N];
    load_pack<aligned>(x, p.x + matrix + at, left);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= factor;
    store_pack<aligned>(p.out + matrix + at, x, left);
    store_pack<aligned>(static_cast<T*>(p.operand) + matrix + at, x, left);
  }
}

}  // namespace

int64_t normalise_partials(int64_t size) {
  return (size + part - 1) / part;
}

void launch_normalise(const NormaliseParams& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.size, part), static_cast<unsigned>(p.count), 1);
  const bool is_aligned = are_aligned({p.x, p.out, p.operand}, {p.size * 4, p.size * size_of(p.operand_dtype)});
  visit_bool(is_aligned, [&](auto aligned) {
    constexpr bool is = decltype(aligned)::value;
    launch(square_kernel<is>, grid, threads, 0, stream, p);
    visit_dtype(p.operand_dtype, [&]<class T>(Type<T>) { launch(divide_kernel<T, is>, grid, threads, 0, stream, p); });
  });
}

}  // namespace lamina::ops::cuda
