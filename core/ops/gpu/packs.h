// Packs of consecutive elements as floats, and choosing a kernel's template by dtypes and alignment.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {

// to = N consecutive elements; those from `count` on are zero. `aligned`: the address is a multiple of 16 bytes, or of N
// elements where that is less. Threads take the same elements either way, so a sum does not depend on alignment.
template <bool aligned, int N, class T>
__device__ __forceinline__ void load_pack(float (&to)[N], const T* from, int64_t count) {
  constexpr int width = static_cast<int>(16 / sizeof(T)) < N ? static_cast<int>(16 / sizeof(T)) : N;
  if (aligned && count >= N) {
#pragma unroll
    for (int first = 0; first < N; first += width) {
      const auto pack = *reinterpret_cast<const Pack<T, width>*>(from + first);
#pragma unroll
      for (int i = 0; i < width; ++i) to[first + i] = to_float(pack.at[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
  }
}

// Stores the first `count` of N elements. `convert` rounds a float to T.
template <bool aligned, int N, class T, class Convert>
__device__ __forceinline__ void store_pack(T* to, const float (&from)[N], int64_t count, Convert convert) {
  constexpr int width = static_cast<int>(16 / sizeof(T)) < N ? static_cast<int>(16 / sizeof(T)) : N;
  if (aligned && count >= N) {
#pragma unroll
    for (int first = 0; first < N; first += width) {
      Pack<T, width> pack;
#pragma unroll
      for (int i = 0; i < width; ++i) pack.at[i] = convert(from[first + i]);
      *reinterpret_cast<Pack<T, width>*>(to + first) = pack;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < count) to[i] = convert(from[i]);
  }
}
template <bool aligned, int N, class T>
__device__ __forceinline__ void store_pack(T* to, const float (&from)[N], int64_t count) {
  store_pack<aligned>(to, from, count, [](float x) { return from_float<T>(x); });
}

// Elements that a thread takes at once: 16 bytes' worth.
template <class T>
constexpr int pack_of = static_cast<int>(16 / sizeof(T));

template <class T>
struct Type {
  using type = T;
};
// Calls f(Type<T>{}) with the device's type of bf16 or fp32.
template <class F>
void visit_dtype(DType dtype, const F& f) {
  if (dtype == DType::bf16)
    f(Type<__nv_bfloat16>{});
  else
    f(Type<float>{});
}
template <class F>
void visit_bool(bool value, const F& f) {
  if (value)
    f(std::true_type{});
  else
    f(std::false_type{});
}

inline bool are_aligned(std::initializer_list<const void*> addresses,
                        std::initializer_list<int64_t> byte_strides = {}) {
  for (const void* address : addresses)
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return false;
  for (const int64_t stride : byte_strides)
    if (stride % 16 != 0) return false;
  return true;
}

inline int round_up_to_warps(int64_t threads, int most) {
  const int64_t rounded = (threads + warp_size - 1) / warp_size * warp_size;
  return rounded < warp_size ? warp_size : rounded > most ? most : static_cast<int>(rounded);
}

}  // namespace lamina::ops::cuda
