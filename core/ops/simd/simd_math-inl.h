// Vector functions shared by kernels: compiled once per instruction set, hence no ordinary include guard.
#if defined(LAMINA_CORE_OPS_CPU_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMINA_CORE_OPS_CPU_SIMD_MATH_INL_H_
#undef LAMINA_CORE_OPS_CPU_SIMD_MATH_INL_H_
#else
#define LAMINA_CORE_OPS_CPU_SIMD_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include "core/base/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// exp(x) for x <= 88: below -87.7 the result is 0 (so -inf gives 0), NaN stays NaN, elsewhere within 2 ulp.
// exp(x) = 2^n exp(r), |r| <= ln(2)/2; the polynomial is Cephes' expf (Moshier, netlib.org/cephes).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V fast_exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  // The operands' order matters: x86 returns the second one when either is NaN.
  x = hn::Max(hn::Set(d, -88.0f), x);
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504088896341f)));
  const V nf = hn::ConvertTo(d, n);
  V r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127)));
  return hn::Mul(p, hn::BitCast(d, exponent));
}

// Loads and stores of floats kept as float or bf16; stores round to nearest even, like bf16's constructor. A whole vector, or
// the first `count` lanes (the others load as zero and are not stored).
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const bf16* from) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from)))));
}

template <class D>
HWY_INLINE void store(hn::Vec<D> v, D d, float* to) {
  hn::StoreU(v, d, to);
}
template <class D>
HWY_INLINE void store(hn::Vec<D> v, D, bf16* to) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<uint32_t, D> d32;
  const hn::Rebind<int32_t, D> di;
  const auto u = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(d32, 1u));
  auto rounded = hn::ShiftRight<16>(hn::Add(u, hn::Add(odd, hn::Set(d32, 0x7fffu))));
  // NaN stays NaN: the rounding could carry out of it.
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  rounded = hn::IfThenElse(is_nan, hn::Or(hn::ShiftRight<16>(u), hn::Set(d32, 0x40u)), rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, rounded)), d16, reinterpret_cast<uint16_t*>(to));
}

template <class D, class T>
HWY_INLINE hn::Vec<D> load_first(D d, const T* from, size_t count) {
  HWY_ALIGN float lanes[hn::MaxLanes(D())] = {};
  for (size_t i = 0; i < count; ++i) lanes[i] = static_cast<float>(from[i]);
  return hn::Load(d, lanes);
}
template <class D, class T>
HWY_INLINE void store_first(hn::Vec<D> v, D d, T* to, size_t count) {
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < count; ++i) to[i] = static_cast<T>(lanes[i]);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
