// A token's row spread over a block: each thread holds E of its elements, in packs of VEC that lie blockDim.x packs apart.
// Elements beyond the row are zero and are not stored.
#pragma once

#include "core/ops/attn_res/kernels.h"
#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {

constexpr int max_row_warps = attn_res_max_threads / warp_size;

template <class T, int VEC, int E>
struct RowPacks {  // as they come from memory
  Pack<T, VEC> at[E / VEC];
};

template <int VEC>
__device__ __forceinline__ int first_column(int pack) {
  return (pack * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * VEC;
}

template <int VEC, int E, class T>
__device__ __forceinline__ void load_packs(RowPacks<T, VEC, E>& packs, const T* row, int dim) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
    const int column = first_column<VEC>(k);
    packs.at[k] = column < dim ? *reinterpret_cast<const Pack<T, VEC>*>(row + column) : Pack<T, VEC>{};
  }
}
template <int VEC, int E, class T>
__device__ __forceinline__ void store_packs(T* row, const RowPacks<T, VEC, E>& packs, int dim) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
    const int column = first_column<VEC>(k);
    if (column < dim) *reinterpret_cast<Pack<T, VEC>*>(row + column) = packs.at[k];
  }
}
template <int VEC, int E, class T>
__device__ __forceinline__ void unpack(float (&x)[E], const RowPacks<T, VEC, E>& packs) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[k * VEC + i] = to_float(packs.at[k].at[i]);
  }
}

// Where T is wider than what VEC was made for, a pack is moved by several accesses of 16 bytes.
template <class T, int VEC>
constexpr int access_width = VEC* static_cast<int>(sizeof(T)) > 16 ? 16 / static_cast<int>(sizeof(T)) : VEC;

template <int VEC, int E, class T>
__device__ __forceinline__ void load_row(float (&x)[E], const T* row, int dim) {
  constexpr int width = access_width<T, VEC>;
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
    const int column = first_column<VEC>(k);
#pragma unroll
    for (int part = 0; part < VEC; part += width) {
      const auto pack = column < dim ? *reinterpret_cast<const Pack<T, width>*>(row + column + part) : Pack<T, width>{};
#pragma unroll
      for (int i = 0; i < width; ++i) x[k * VEC + part + i] = to_float(pack.at[i]);
    }
  }
}
template <int VEC, int E, class T>
__device__ __forceinline__ void store_row(T* row, const float (&x)[E], int dim) {
  constexpr int width = access_width<T, VEC>;
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
    const int column = first_column<VEC>(k);
    if (column >= dim) continue;
#pragma unroll
    for (int part = 0; part < VEC; part += width) {
      Pack<T, width> pack;
#pragma unroll
      for (int i = 0; i < width; ++i) pack.at[i] = from_float<T>(x[k * VEC + part + i]);
      *reinterpret_cast<Pack<T, width>*>(row + column + part) = pack;
    }
  }
}

template <class T>
__device__ __forceinline__ T* row_of(const Rows& rows, int64_t token) {
  return static_cast<T*>(rows.data) + token * rows.stride;
}
// Rows whose dtype is known at run time only.
template <int VEC, int E>
__device__ __forceinline__ void load_row_of(float (&x)[E], const Rows& rows, bool is_bf16, int64_t token, int dim) {
  if (is_bf16)
    load_row<VEC>(x, row_of<const __nv_bfloat16>(rows, token), dim);
  else
    load_row<VEC>(x, row_of<const float>(rows, token), dim);
}
template <int VEC, int E>
__device__ __forceinline__ void store_row_of(const Rows& rows, bool is_bf16, int64_t token, const float (&x)[E],
                                             int dim) {
  if (is_bf16)
    store_row<VEC>(row_of<__nv_bfloat16>(rows, token), x, dim);
  else
    store_row<VEC>(row_of<float>(rows, token), x, dim);
}

__device__ __forceinline__ float element_of(const Vector& v, int64_t i) {
  return v.is_bf16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(v.data)[i])
                   : static_cast<const float*>(v.data)[i];
}
// Once per block, so one element at a time, which any alignment allows.
template <int VEC, int E>
__device__ __forceinline__ void load_vector(float (&x)[E], const Vector& v, int dim) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const int column = first_column<VEC>(k) + i;
      x[k * VEC + i] = column < dim ? element_of(v, column) : 0.0f;
    }
  }
}
template <int VEC, int E>
__device__ __forceinline__ void load_weighted(float (&x)[E], const QueryVectors& query, int dim) {
  float norm[E];
  load_vector<VEC>(x, query.query, dim);
  load_vector<VEC>(norm, query.norm_weight, dim);
#pragma unroll
  for (int i = 0; i < E; ++i) x[i] *= norm[i];
}

template <int E>
__device__ __forceinline__ float dot(const float (&a)[E], const float (&b)[E]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < E; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

// The sums over the warp of N values at once (N a power of two, at most 32): lane l receives that of value l % N. Halving what is
// exchanged at every step takes N + log2(32 / N) - 1 shuffles instead of 5 N.
template <int N>
__device__ __forceinline__ float warp_sums(float (&x)[N]) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
  for (int count = N / 2; count > 0; count /= 2) {
    const bool upper = (lane & count) != 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float other = __shfl_xor_sync(full_warp, upper ? x[i] : x[i + count], count);
      x[i] = (upper ? x[i + count] : x[i]) + other;
    }
  }
  float total = x[0];
#pragma unroll
  for (int offset = N; offset < warp_size; offset *= 2) total += __shfl_xor_sync(full_warp, total, offset);
  return total;
}

// Sums of N values over the block, to every thread, with one barrier: two calls in turn use different halves of `shared`
// ([2][MOST][max_row_warps], MOST the most values of any call), `turn` tells which, and flips.
template <int MOST, int N>
__device__ __forceinline__ void block_sums(float (&x)[N], float* shared, int& turn) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int num_warps = static_cast<int>(blockDim.x) / warp_size;
  float* const half = shared + turn * MOST * max_row_warps;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] = warp_sum(x[i]);
    if (lane == 0) half[i * max_row_warps + warp] = x[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int from = lane % max_row_warps;
    float sum = from < num_warps ? half[i * max_row_warps + from] : 0.0f;
#pragma unroll
    for (int offset = max_row_warps / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(full_warp, sum, offset);
    x[i] = sum;
  }
  turn ^= 1;
}

inline int num_multiprocessors() {
  int device = 0, count = 0;
  lamina::cuda::check(cudaGetDevice(&device), "the current device");
  lamina::cuda::check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "a device's properties");
  return count;
}
inline unsigned row_threads(int dim, int elements) {  // of a block, so that each thread holds `elements` of a row
  const int threads = (dim + elements - 1) / elements;
  return static_cast<unsigned>((threads + warp_size - 1) / warp_size * warp_size);
}

// launch<T, VEC, E, THREADS>(): the widest accesses that the rows allow, as few elements per thread as 512 threads can do with, and
// the most threads that the block may have, which decides how many registers a thread gets.
template <class Launch>
void dispatch_row(bool is_bf16, bool is_vector, int dim, Launch&& launch) {
  constexpr int few = attn_res_few_threads, many = attn_res_max_threads;
  const auto with = [&]<class T, int VEC>() {
    if (VEC > 1 && dim <= 8 * few)
      launch.template operator()<T, VEC, 8, VEC == 1 ? many : few>();
    else if (dim <= 8 * many)
      launch.template operator()<T, VEC, 8, many>();
    else
      launch.template operator()<T, VEC, 16, many>();
  };
  if (is_bf16)
    is_vector ? with.template operator()<__nv_bfloat16, 8>() : with.template operator()<__nv_bfloat16, 1>();
  else
    is_vector ? with.template operator()<float, 4>() : with.template operator()<float, 1>();
}

}  // namespace lamina::ops::cuda
