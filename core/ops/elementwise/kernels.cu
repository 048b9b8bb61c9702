#include "core/ops/elementwise/kernels.h"

#include "core/ops/gpu/packs.h"
#include "core/ops/sum_order.h"

namespace lamina::ops::cuda {
namespace {

constexpr int threads = 256,
              elements = 8;  // per thread, in loads of 16 bytes that are all issued before the first is used

__device__ __forceinline__ int64_t first_element() {
  return (static_cast<int64_t>(blockIdx.x) * threads + static_cast<int64_t>(threadIdx.x)) * elements;
}

template <class T>
__device__ __forceinline__ const T* input(const Flat& x, int64_t first) {
  return static_cast<const T*>(x.data) + first;
}
template <class T>
__device__ __forceinline__ T* output(const Flat& x, int64_t first) {
  return static_cast<T*>(x.data) + first;
}

template <class A, class B, class Y, bool aligned>
__global__ void __launch_bounds__(threads) add_kernel(const AddParams p) {
  const int64_t first = first_element(), left = p.count - first;
  if (left <= 0) return;
  float a[elements], b[elements];
  load_pack<aligned>(a, input<A>(p.a, first), left);
  load_pack<aligned>(b, input<B>(p.b, first), left);
#pragma unroll
  for (int i = 0; i < elements; ++i) a[i] += b[i];
  store_pack<aligned>(output<Y>(p.y, first), a, left);
}

// The instruction gives one NaN for all; the CPU keeps what it can of it.
template <class T>
__device__ __forceinline__ T cast_element(float x) {
  return from_float<T>(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 cast_element(float x) {
  if (x == x) return __float2bfloat16_rn(x);
  return __ushort_as_bfloat16(static_cast<unsigned short>(__float_as_uint(x) >> 16 | 0x40u));
}

template <class X, class Y, bool aligned>
__global__ void __launch_bounds__(threads) cast_kernel(const CastParams p) {
  const int64_t first = first_element(), left = p.count - first;
  if (left <= 0) return;
  float x[elements];
  load_pack<aligned>(x, input<X>(p.x, first), left);
  store_pack<aligned>(output<Y>(p.y, first), x, left, [](float value) { return cast_element<Y>(value); });
}

template <class T, bool aligned>
__global__ void __launch_bounds__(threads) fill_kernel(const FillParams p) {
  const int64_t first = first_element(), left = p.count - first;
  if (left <= 0) return;
  float x[elements];
#pragma unroll
  for (int i = 0; i < elements; ++i) x[i] = p.value;
  store_pack<aligned>(output<T>(p.x, first), x, left);
}

template <class T, bool aligned>
__global__ void __launch_bounds__(threads) scale_kernel(const ScaleParams p) {
  const int64_t first = first_element(), left = p.count - first;
  if (left <= 0) return;
  float x[elements];
  load_pack<aligned>(x, input<T>(p.x, first), left);
#pragma unroll
  for (int i = 0; i < elements; ++i) x[i] *= p.factor;
  store_pack<aligned>(output<T>(p.x, first), x, left);
}

// The sum of a block's squares, by a warp. Each lane has the partial sum of its number: neighbours read neighbours whatever the
// alignment. Squares of fp32 are exact in double, so the fused operation rounds as the CPU's product and sum do.
template <class T>
__device__ __forceinline__ double square_block(const T* x, int64_t left, int lane) {
  static_assert(sum_lanes == warp_size && sum_block % (sum_lanes * 16) == 0);
  constexpr int at_once = 16;
  double sum = 0;
  if (left >= sum_block) {
    for (int base = lane; base < sum_block; base += at_once * warp_size) {
      float value[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) value[i] = to_float(x[base + i * warp_size]);
#pragma unroll
      for (int i = 0; i < at_once; ++i) sum = fma(static_cast<double>(value[i]), static_cast<double>(value[i]), sum);
    }
  } else {
    for (int64_t at = lane; at < left; at += warp_size) {
      const auto value = static_cast<double>(to_float(x[at]));
      sum = fma(value, value, sum);
    }
  }
  double total = 0;
#pragma unroll
  for (int source = 0; source < warp_size; ++source) total += __shfl_sync(full_warp, sum, source);
  return total;
}

__global__ void __launch_bounds__(threads) square_blocks_kernel(const __grid_constant__ SquareBlocksParams p) {
  const auto block = static_cast<int>(blockIdx.x * (threads / warp_size) + threadIdx.x / warp_size);
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  if (block >= p.first_block[p.num_tensors]) return;
  int tensor = 0;  // the last whose first block is not behind this one
  for (int step = SquareBlocksParams::most / 2; step > 0; step /= 2)
    if (tensor + step < p.num_tensors && p.first_block[tensor + step] <= block) tensor += step;
  const int64_t first = (block - p.first_block[tensor]) * sum_block, left = p.counts[tensor] - first;
  const Flat& x = p.tensors[tensor];
  const double sum = x.dtype == DType::bf16 ? square_block(input<__nv_bfloat16>(x, first), left, lane)
                                            : square_block(input<float>(x, first), left, lane);
  if (lane == 0) p.sums[block] = sum;
}

unsigned num_blocks(int64_t count) {
  return blocks_for(count, int64_t{threads} * elements);
}

}  // namespace

void launch_add(const AddParams& p, cudaStream_t stream) {
  visit_dtype(p.a.dtype, [&]<class A>(Type<A>) {
    visit_dtype(p.b.dtype, [&]<class B>(Type<B>) {
      visit_dtype(p.y.dtype, [&]<class Y>(Type<Y>) {
        visit_bool(are_aligned({p.a.data, p.b.data, p.y.data}), [&](auto aligned) {
          launch(add_kernel<A, B, Y, decltype(aligned)::value>, num_blocks(p.count), threads, 0, stream, p);
        });
      });
    });
  });
}

void launch_cast(const CastParams& p, cudaStream_t stream) {
  visit_dtype(p.x.dtype, [&]<class X>(Type<X>) {
    visit_dtype(p.y.dtype, [&]<class Y>(Type<Y>) {
      visit_bool(are_aligned({p.x.data, p.y.data}), [&](auto aligned) {
        launch(cast_kernel<X, Y, decltype(aligned)::value>, num_blocks(p.count), threads, 0, stream, p);
      });
    });
  });
}

void launch_fill(const FillParams& p, cudaStream_t stream) {
  visit_dtype(p.x.dtype, [&]<class T>(Type<T>) {
    visit_bool(are_aligned({p.x.data}), [&](auto aligned) {
      launch(fill_kernel<T, decltype(aligned)::value>, num_blocks(p.count), threads, 0, stream, p);
    });
  });
}

void launch_scale(const ScaleParams& p, cudaStream_t stream) {
  visit_dtype(p.x.dtype, [&]<class T>(Type<T>) {
    visit_bool(are_aligned({p.x.data}), [&](auto aligned) {
      launch(scale_kernel<T, decltype(aligned)::value>, num_blocks(p.count), threads, 0, stream, p);
    });
  });
}

void launch_square_blocks(const SquareBlocksParams& p, cudaStream_t stream) {
  launch(square_blocks_kernel, blocks_for(p.first_block[p.num_tensors], threads / warp_size), threads, 0, stream, p);
}

}  // namespace lamina::ops::cuda
