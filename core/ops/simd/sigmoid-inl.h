// The logistic function and what follows from it. Compiled once per instruction set, hence no ordinary include guard.
#if defined(LAMINA_CORE_OPS_CPU_SIGMOID_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMINA_CORE_OPS_CPU_SIGMOID_INL_H_
#undef LAMINA_CORE_OPS_CPU_SIGMOID_INL_H_
#else
#define LAMINA_CORE_OPS_CPU_SIGMOID_INL_H_
#endif

#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

// exp(-z) is finite for every clamped z; beyond the clamp the result is 0 or 1 within fp32's smallest normal number.
HWY_INLINE V logistic(V z) {
  const V one = hn::Set(D(), 1.0f);
  return hn::Div(one, hn::Add(one, fast_exp(D(), hn::Min(hn::Neg(z), hn::Set(D(), 87.0f)))));
}

// log(1 + exp(x)) = max(x, 0) + log1p(u), u = exp(-|x|), and log1p(u) = 2 artanh(u / (2 + u)), whose series at most 1/3 from zero
// is below fp32's rounding after eight terms. Above 17 the second summand is below it too: the result is x.
HWY_INLINE V softplus(V x) {
  const V u = fast_exp(D(), hn::Neg(hn::Abs(x)));
  const V s = hn::Div(u, hn::Add(u, hn::Set(D(), 2.0f))), square = hn::Mul(s, s);
  V sum = hn::Set(D(), 2.0f / 15);
  for (const float n : {13.0f, 11.0f, 9.0f, 7.0f, 5.0f, 3.0f, 1.0f}) {
    sum = hn::MulAdd(sum, square, hn::Set(D(), 2.0f / n));
  }
  return hn::MulAdd(sum, s, hn::Max(x, hn::Zero(D())));
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
