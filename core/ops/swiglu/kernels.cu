#include "core/ops/swiglu/kernels.h"

#include "core/ops/gpu/packs.h"

namespace lamina::ops::cuda {
namespace {

constexpr int most_threads = 256;

// The fast exponential's error grows with its argument: too large for fp32, nothing to bf16.
template <class T>
__device__ __forceinline__ float sigmoid_for(float x) {
  if constexpr (sizeof(T) == sizeof(float))
    return 1.0f / (1.0f + expf(-x));
  else
    return sigmoid(x);
}

// The same products in the same order in both directions: a recomputed y has the forward's bits.
__device__ __forceinline__ float value_of(float gate, float s, float up, float weight) {
  return gate * s * up * weight;
}

template <class T, bool aligned>
__global__ void __launch_bounds__(most_threads) forward_kernel(const SwigluForwardParams p) {
  constexpr int N = pack_of<T>;
  const int64_t token = blockIdx.x;
  const int64_t at = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N, left = p.width - at;
  if (left <= 0) return;
  const T* const gates = static_cast<const T*>(p.gate_up) + token * p.gate_up_stride + at;
  float gate[N], up[N];
  load_pack<aligned>(gate, gates, left);
  load_pack<aligned>(up, gates + p.width, left);
  const float weight = p.weight != nullptr ? p.weight[token] : 1.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) gate[i] = value_of(gate[i], sigmoid_for<T>(gate[i]), up[i], weight);
  store_pack<aligned>(static_cast<T*>(p.y) + token * p.y_stride + at, gate, left);
}

template <class T, bool aligned>
__global__ void __launch_bounds__(most_threads) backward_kernel(const SwigluBackwardParams p) {
  constexpr int N = pack_of<T>;
  __shared__ float shared[33];
  const int64_t token = blockIdx.x, step = static_cast<int64_t>(gridDim.y) * blockDim.x * N;
  const T* const gates = static_cast<const T*>(p.gate_up) + token * p.gate_up_stride;
  const T* const dy_row = static_cast<const T*>(p.dy) + token * p.dy_stride;
  T* const dgates = static_cast<T*>(p.dgate_up) + token * p.dgate_up_stride;
  const float weight = p.weight != nullptr ? p.weight[token] : 1.0f;
  float dweight = 0;
  for (int64_t at = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N; at < p.width; at += step) {
    const int64_t left = p.width - at;
    float gate[N], up[N], dy[N], y[N];
    load_pack<aligned>(gate, gates + at, left);
    load_pack<aligned>(up, gates + p.width + at, left);
    load_pack<aligned>(dy, dy_row + at, left);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float s = sigmoid_for<T>(gate[i]), g = gate[i], u = up[i];
      y[i] = value_of(g, s, u, weight);
      dweight += dy[i] * g * s * u;
      gate[i] = weight * dy[i] * u * s * (1.0f + g * (1.0f - s));
      up[i] = weight * dy[i] * g * s;
    }
    store_pack<aligned>(dgates + at, gate, left);
    store_pack<aligned>(dgates + p.width + at, up, left);
    if (p.y != nullptr) store_pack<aligned>(static_cast<T*>(p.y) + token * p.y_stride + at, y, left);
  }
  if (p.dweight == nullptr) return;
  dweight = block_sum(dweight, shared);
  if (threadIdx.x == 0) p.dweight[token] = dweight;
}

struct Shape {
  dim3 grid;
  unsigned threads;
};
Shape shape_of(int64_t tokens, int64_t width, int64_t pack, bool whole_rows) {
  const int64_t packs = (width + pack - 1) / pack;
  const auto threads = static_cast<unsigned>(round_up_to_warps(packs, most_threads));
  return {dim3(static_cast<unsigned>(tokens), whole_rows ? 1 : blocks_for(packs, threads), 1), threads};
}

}  // namespace

void launch_swiglu_forward(const SwigluForwardParams& p, cudaStream_t stream) {
  const int64_t size = size_of(p.dtype);
  const bool is_aligned = are_aligned({p.gate_up, p.y}, {p.gate_up_stride * size, p.y_stride * size, p.width * size});
  visit_dtype(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      const Shape shape = shape_of(p.tokens, p.width, pack_of<T>, false);
      launch(forward_kernel<T, decltype(aligned)::value>, shape.grid, shape.threads, 0, stream, p);
    });
  });
}

void launch_swiglu_backward(const SwigluBackwardParams& p, cudaStream_t stream) {
  const int64_t size = size_of(p.dtype);
  const bool is_aligned = are_aligned(
      {p.gate_up, p.dy, p.dgate_up, p.y},
      {p.gate_up_stride * size, p.dy_stride * size, p.dgate_up_stride * size, p.y_stride * size, p.width * size});
  visit_dtype(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      const Shape shape = shape_of(p.tokens, p.width, pack_of<T>, p.dweight != nullptr);
      launch(backward_kernel<T, decltype(aligned)::value>, shape.grid, shape.threads, 0, stream, p);
    });
  });
}

}  // namespace lamina::ops::cuda
