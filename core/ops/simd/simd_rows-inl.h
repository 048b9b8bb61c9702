// Loops over a row in whole vectors and one tail. Compiled once per instruction set, hence no ordinary include guard.
#if defined(LAMINA_CORE_OPS_CPU_SIMD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMINA_CORE_OPS_CPU_SIMD_ROWS_INL_H_
#undef LAMINA_CORE_OPS_CPU_SIMD_ROWS_INL_H_
#else
#define LAMINA_CORE_OPS_CPU_SIMD_ROWS_INL_H_
#endif

#include <cstddef>
#include <type_traits>

#include "core/ops/simd/simd_math-inl.h"
#include "core/tensor/view.h"

// For the lambdas given to the loops below: they must become part of the loop.
#ifndef LAMINA_VECTOR_BODY
#define LAMINA_VECTOR_BODY HWY_ATTR __attribute__((always_inline))
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Which lanes of a vector exist: all of them, or the first `count` (the others load as zero and aren't stored).
struct Full {};
struct Tail {
  size_t count;
};

template <class T>
HWY_INLINE V load(Full, const T* from) {
  return load(D(), from);
}
template <class T>
HWY_INLINE V load(Tail tail, const T* from) {
  return load_first(D(), from, tail.count);
}
template <class T>
HWY_INLINE void store(Full, V v, T* to) {
  store(v, D(), to);
}
template <class T>
HWY_INLINE void store(Tail tail, V v, T* to) {
  store_first(v, D(), to, tail.count);
}

// What a store would leave in memory, read back.
template <class T>
HWY_INLINE V rounded(V v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    HWY_ALIGN bf16 lanes[hn::MaxLanes(D())];
    store(v, D(), lanes);
    return load(D(), lanes);
  }
}

// body(i, part)
template <class Body>
HWY_INLINE void each_vector(size_t count, Body&& body) {
  const size_t lanes = hn::Lanes(D());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, Full{});
  if (i < count) body(i, Tail{count - i});
}

// body(i, part, k) with k = 0, 1, 2, 3, 0, ... a constant: one accumulator per k hides the latency of a sum.
template <class Body>
HWY_INLINE void each_vector_by_4(size_t count, Body&& body) {
  const size_t lanes = hn::Lanes(D());
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    body(i, Full{}, std::integral_constant<size_t, 0>{});
    body(i + lanes, Full{}, std::integral_constant<size_t, 1>{});
    body(i + 2 * lanes, Full{}, std::integral_constant<size_t, 2>{});
    body(i + 3 * lanes, Full{}, std::integral_constant<size_t, 3>{});
  }
  for (; i + lanes <= count; i += lanes) body(i, Full{}, std::integral_constant<size_t, 0>{});
  if (i < count) body(i, Tail{count - i}, std::integral_constant<size_t, 1>{});
}

HWY_INLINE float sum_of_lanes(V v) {
  return hn::GetLane(hn::SumOfLanes(D(), v));
}
HWY_INLINE float sum_of_lanes(const V (&v)[4]) {
  return sum_of_lanes(hn::Add(hn::Add(v[0], v[1]), hn::Add(v[2], v[3])));
}

template <class T>
HWY_INLINE T* row(const TensorView& matrix, int64_t index) {
  return static_cast<T*>(matrix.data) + index * matrix.stride(0);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
