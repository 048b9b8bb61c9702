#include "core/ops/swiglu/implementations.h"

#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/swiglu/cpu.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

// exp(-z) is finite for every clamped z; beyond the clamp the sigmoid is 0 or 1 within fp32's smallest normal number.
HWY_INLINE V sigmoid(V z) {
  const V exponent = hn::Min(hn::Neg(z), hn::Set(D(), 87.0f));
  const V one = hn::Set(D(), 1.0f);
  return hn::Div(one, hn::Add(one, fast_exp(D(), exponent)));
}

// One where there are no weights: exact, and free beside the exponential.
HWY_INLINE V weight_of(const TensorView& weight, int64_t t) {
  return hn::Set(D(), weight ? static_cast<const float*>(weight.data)[t] : 1.0f);
}

template <class T>
void forward_rows(const SwigluForward& args, int64_t begin, int64_t end) {
  const size_t width = static_cast<size_t>(args.y.size(1));
  for (int64_t t = begin; t < end; ++t) {
    const T* gate = row<T>(args.gate_up, t);
    const T* up = gate + width;
    T* y = row<T>(args.y, t);
    const V weight = weight_of(args.weight, t);
    each_vector(width, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V z = load(part, gate + i);
      store(part, hn::Mul(hn::Mul(hn::Mul(z, sigmoid(z)), load(part, up + i)), weight), y + i);
    });
  }
}

template <class T, bool with_y>
void backward_rows(const SwigluBackward& args, int64_t begin, int64_t end) {
  const size_t width = static_cast<size_t>(args.dy.size(1));
  const V one = hn::Set(D(), 1.0f);
  for (int64_t t = begin; t < end; ++t) {
    const T* gate = row<T>(args.gate_up, t);
    const T* up = gate + width;
    const T* dy = row<T>(args.dy, t);
    T* dgate = row<T>(args.dgate_up, t);
    T* dup = dgate + width;
    T* y = with_y ? row<T>(args.y, t) : nullptr;
    const V weight = weight_of(args.weight, t);
    V dweight[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(width, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
      const V z = load(part, gate + i), u = load(part, up + i), unweighted = load(part, dy + i);
      const V g = hn::Mul(unweighted, weight);
      const V s = sigmoid(z);
      const V silu = hn::Mul(z, s);
      const V slope = hn::MulAdd(silu, hn::Sub(one, s), s);  // s (1 + z (1 - s))
      store(part, hn::Mul(hn::Mul(g, u), slope), dgate + i);
      store(part, hn::Mul(g, silu), dup + i);
      const V product = hn::Mul(silu, u);
      if constexpr (with_y) store(part, hn::Mul(product, weight), y + i);
      dweight[k] = hn::MulAdd(unweighted, product, dweight[k]);
    });
    if (args.dweight) static_cast<float*>(args.dweight.data)[t] = sum_of_lanes(dweight);
  }
}

void silu_forward(const SwigluForward& args, int64_t begin, int64_t end) {
  if (args.y.dtype == DType::bf16) return forward_rows<bf16>(args, begin, end);
  forward_rows<float>(args, begin, end);
}
void silu_backward(const SwigluBackward& args, int64_t begin, int64_t end) {
  if (args.dy.dtype == DType::bf16) {
    if (args.y) return backward_rows<bf16, true>(args, begin, end);
    return backward_rows<bf16, false>(args, begin, end);
  }
  if (args.y) return backward_rows<float, true>(args, begin, end);
  backward_rows<float, false>(args, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(silu_forward);
HWY_EXPORT(silu_backward);

const char* swiglu_forward_refuses(const SwigluForward& args) {
  return refuses_f64(args.y);
}
const char* swiglu_backward_refuses(const SwigluBackward& args) {
  return refuses_f64(args.dy);
}

void swiglu_forward(OpContext&, const SwigluForward& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(silu_forward);
  lamina::cpu::parallel_for(args.y.size(0), row_grain(args.y.size(1)),
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void swiglu_backward(OpContext&, const SwigluBackward& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(silu_backward);
  lamina::cpu::parallel_for(args.dy.size(0), row_grain(args.dy.size(1)),
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

}  // namespace lamina::ops::cpu
#endif
