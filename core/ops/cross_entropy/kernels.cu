#include "core/ops/cross_entropy/kernels.h"

#include <cfloat>

#include "core/ops/gpu/packs.h"

namespace lamina::ops::cuda {
namespace {

constexpr int most_threads = 512;
constexpr int N = 4, packs = 4;  // a thread has `packs` loads of N logits under way

// To every thread; contains barriers. `shared`: a float per warp.
__device__ __forceinline__ float block_max(float x, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int num_warps = static_cast<int>(blockDim.x) / warp_size;
  x = warp_max(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_max(lane < num_warps ? shared[lane] : -FLT_MAX);
  __syncthreads();
  return x;
}

__device__ __forceinline__ int64_t column(int64_t base, int pack) {
  return base + (static_cast<int64_t>(pack) * blockDim.x + threadIdx.x) * N;
}

// A block has a row.
template <class T, bool aligned>
__global__ void __launch_bounds__(most_threads) softmax_kernel(const SoftmaxCrossEntropyParams p) {
  __shared__ float shared[33];
  const int64_t row = blockIdx.x, step = static_cast<int64_t>(blockDim.x) * N * packs;
  const float* const logits = p.logits + row * p.vocab;
  const int64_t target = p.targets[row];
  const float target_logit = logits[target];  // before the gradient takes its place, which is after barriers
  // Each thread's largest logit so far, and its sum of exponentials in units of that one's.
  float largest = -FLT_MAX, sum = 0;
  for (int64_t base = 0; base < p.vocab; base += step) {
    float x[packs][N], above = largest;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int64_t at = column(base, k);
      load_pack<aligned>(x[k], logits + at, p.vocab - at);
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (at + i >= p.vocab) x[k][i] = -FLT_MAX;
    }
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) above = fmaxf(above, x[k][i]);
    sum *= expf(largest - above);
    largest = above;
#pragma unroll
    for (int k = 0; k < packs; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float term = expf(x[k][i] - largest);
        if (column(base, k) + i < p.vocab) sum += term;
      }
  }
  const float top = block_max(largest, shared);
  const float total = block_sum(sum * expf(largest - top), shared);
  if (threadIdx.x == 0) p.token_loss[row] = logf(total) + (top - target_logit);
  if (p.dlogits == nullptr) return;
  T* const dlogits = static_cast<T*>(p.dlogits) + row * p.vocab;
  const float factor = p.grad_scale / total;
  const float of_target = p.grad_scale * (expf(target_logit - top) / total - 1.0f);
  for (int64_t base = 0; base < p.vocab; base += step) {
    float x[packs][N];
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int64_t at = column(base, k);
      load_pack<aligned>(x[k], logits + at, p.vocab - at);
    }
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int64_t at = column(base, k);
#pragma unroll
      for (int i = 0; i < N; ++i) x[k][i] = at + i == target ? of_target : factor * expf(x[k][i] - top);
      store_pack<aligned>(dlogits + at, x[k], p.vocab - at);
    }
  }
}

}  // namespace

void launch_softmax_cross_entropy(const SoftmaxCrossEntropyParams& p, cudaStream_t stream) {
  const int64_t logits_bytes = p.vocab * 4;
  const bool is_aligned = are_aligned({p.logits, p.dlogits}, {logits_bytes});
  const int threads = round_up_to_warps((p.vocab + N * packs - 1) / (N * packs), most_threads);
  const unsigned rows = blocks_for(p.rows, 1);
  visit_dtype(p.dlogits_dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      launch(softmax_kernel<T, decltype(aligned)::value>, rows, static_cast<unsigned>(threads), 0, stream, p);
    });
  });
}

}  // namespace lamina::ops::cuda
