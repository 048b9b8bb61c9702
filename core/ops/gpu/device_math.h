// What the kernels share: conversions, packs of elements, sums over warps and blocks.
#pragma once

#include <initializer_list>

#include "core/device/cuda/kernel.h"

namespace lamina::ops::cuda {

using lamina::cuda::launch;

constexpr int warp_size = 32;
constexpr unsigned full_warp = 0xffffffffu;

template <class T>
__device__ __forceinline__ float to_float(T x) {
  return x;
}
template <>
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ __forceinline__ T from_float(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float x) {
  return __float2bfloat16_rn(x);
}
// What a value becomes when stored as T and read again.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// Two bf16 in the order of a tensor core's fragment: the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// N consecutive elements moved by one instruction; the address must be a multiple of their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(full_warp, x, offset);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(full_warp, x, offset));
  return x;
}

// The sum over a block of at most 1,024 threads, to every thread, in an order that depends on the block's size only. `shared`: 33
// floats. Contains barriers: all threads call it.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int num_warps = (static_cast<int>(blockDim.x) + warp_size - 1) / warp_size;
  x = warp_sum(x);
  __syncthreads();  // the shared values of a call before may still be read
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  if (warp == 0) {
    const float total = warp_sum(lane < num_warps ? shared[lane] : 0.0f);
    if (lane == 0) shared[32] = total;
  }
  __syncthreads();
  return shared[32];
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}

inline unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

// Elements that one access may move: 16 bytes' worth where every address and extent allows it, else one.
inline int pack_width(int64_t element_bytes, std::initializer_list<const void*> addresses,
                      std::initializer_list<int64_t> multiples) {
  const int64_t width = 16 / element_bytes;
  for (const void* address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return 1;
  for (const int64_t multiple : multiples)
    if (multiple % width != 0) return 1;
  return static_cast<int>(width);
}

}  // namespace lamina::ops::cuda
