#include <cmath>

#include "core/ops/kda/implementations.h"
#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/kda/cpu_gate.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/simd/sigmoid-inl.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

template <class T>
HWY_INLINE T* head_row(const TensorView& view, int64_t token, int64_t head) {
  return static_cast<T*>(view.data) + token * view.stride(0) + head * view.stride(1);
}
HWY_INLINE float& scalar(const TensorView& contiguous, int64_t token, int64_t head) {
  return static_cast<float*>(contiguous.data)[token * contiguous.size(1) + head];
}

// body(token, head) for the rows of tokens [begin, end) of a [tokens, heads, dim] view.
template <class Body>
HWY_INLINE void each_head(const TensorView& view, int64_t begin, int64_t end, Body&& body) {
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t h = 0; h < view.size(1); ++h) body(t, h);
  }
}

template <class T>
void l2_forward_rows(const L2NormForward& args, int64_t begin, int64_t end) {
  const auto dim = static_cast<size_t>(args.x.size(2));
  each_head(args.x, begin, end, [&](int64_t t, int64_t h) LAMINA_VECTOR_BODY {
    const T* x = head_row<T>(args.x, t, h);
    T* y = head_row<T>(args.y, t, h);
    V square[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(dim, [&](size_t i, auto part, auto n) LAMINA_VECTOR_BODY {
      const V value = load(part, x + i);
      square[n] = hn::MulAdd(value, value, square[n]);
    });
    const float rstd = 1.0f / std::sqrt(sum_of_lanes(square) + static_cast<float>(args.eps));
    scalar(args.rstd, t, h) = rstd;
    each_vector(dim, [&](size_t i, auto part)
                         LAMINA_VECTOR_BODY { store(part, hn::Mul(load(part, x + i), hn::Set(D(), rstd)), y + i); });
  });
}

template <class T>
void l2_backward_rows(const L2NormBackward& args, int64_t begin, int64_t end) {
  const auto dim = static_cast<size_t>(args.y.size(2));
  each_head(args.y, begin, end, [&](int64_t t, int64_t h) LAMINA_VECTOR_BODY {
    const T *y = head_row<T>(args.y, t, h), *dy = head_row<T>(args.dy, t, h);
    T* dx = head_row<T>(args.dx, t, h);
    V dot[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(dim, [&](size_t i, auto part, auto n) LAMINA_VECTOR_BODY {
      dot[n] = hn::MulAdd(load(part, y + i), load(part, dy + i), dot[n]);
    });
    const V projection = hn::Set(D(), sum_of_lanes(dot)), rstd = hn::Set(D(), scalar(args.rstd, t, h));
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      store(part, hn::Mul(rstd, hn::NegMulAdd(projection, load(part, y + i), load(part, dy + i))), dx + i);
    });
  });
}

template <class T, bool bounded>
void gate_forward_rows(const KdaGateForward& args, const float* rates, int64_t begin, int64_t end) {
  const auto dim = static_cast<size_t>(args.f.size(2)), heads = static_cast<size_t>(args.f.size(1));
  const V bound = hn::Set(D(), static_cast<float>(args.lower_bound.value_or(0)));
  each_head(args.f, begin, end, [&](int64_t t, int64_t h) LAMINA_VECTOR_BODY {
    const T* f = head_row<T>(args.f, t, h);
    const float* bias = static_cast<const float*>(args.dt_bias.data) + static_cast<size_t>(h) * dim;
    float* g = head_row<float>(args.g, t, h);
    const V rate = hn::Set(D(), rates[h]);
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V x = hn::Add(load(part, f + i), load(part, bias + i));
      store(part, bounded ? hn::Mul(bound, logistic(hn::Mul(rate, x))) : hn::Neg(hn::Mul(rate, softplus(x))), g + i);
    });
  });
  for (int64_t t = begin; t < end; ++t) {
    const T* logits = row<T>(args.beta_logits, t);
    float* beta = &scalar(args.beta, t, 0);
    each_vector(heads, [&](size_t i, auto part)
                           LAMINA_VECTOR_BODY { store(part, logistic(load(part, logits + i)), beta + i); });
  }
}

// `dbias` holds padded(K) sums per head, `d_a_log` one.
template <class T, bool bounded>
void gate_backward_rows(const KdaGateBackward& args, const float* rates, float* dbias, float* d_a_log, int64_t begin,
                        int64_t end) {
  const auto dim = static_cast<size_t>(args.f.size(2)), heads = static_cast<size_t>(args.f.size(1));
  const V bound = hn::Set(D(), static_cast<float>(args.lower_bound.value_or(0))), one = hn::Set(D(), 1.0f);
  each_head(args.f, begin, end, [&](int64_t t, int64_t h) LAMINA_VECTOR_BODY {
    const T* f = head_row<T>(args.f, t, h);
    T* df = head_row<T>(args.df, t, h);
    const float* bias = static_cast<const float*>(args.dt_bias.data) + static_cast<size_t>(h) * dim;
    const float* dg = head_row<float>(args.dg, t, h);
    float* sums = dbias + h * padded(args.f.size(2));
    const V rate = hn::Set(D(), rates[h]);
    V of_rate = hn::Zero(D());
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V x = hn::Add(load(part, f + i), load(part, bias + i)), gradient = load(part, dg + i);
      V slope, by_rate;  // of g: to f, and to a_log
      if constexpr (bounded) {
        const V s = logistic(hn::Mul(rate, x));
        slope = hn::Mul(hn::Mul(bound, rate), hn::Mul(s, hn::Sub(one, s)));
        by_rate = hn::Mul(slope, x);
      } else {
        slope = hn::Neg(hn::Mul(rate, logistic(x)));
        by_rate = hn::Neg(hn::Mul(rate, softplus(x)));
      }
      const V d = hn::Mul(gradient, slope);
      store(part, d, df + i);
      store(part, hn::Add(load(part, sums + i), d), sums + i);
      of_rate = hn::MulAdd(gradient, by_rate, of_rate);
    });
    d_a_log[h] += sum_of_lanes(of_rate);
  });
  for (int64_t t = begin; t < end; ++t) {
    T* dlogits = row<T>(args.dbeta_logits, t);
    const float *beta = &scalar(args.beta, t, 0), *dbeta = &scalar(args.dbeta, t, 0);
    each_vector(heads, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V b = load(part, beta + i);
      store(part, hn::Mul(load(part, dbeta + i), hn::Mul(b, hn::Sub(one, b))), dlogits + i);
    });
  }
}

template <class T>
void norm_forward_rows(const GatedRmsNormForward& args, int64_t begin, int64_t end) {
  const auto dim = static_cast<size_t>(args.o.size(2));
  const float* weight = static_cast<const float*>(args.weight.data);
  each_head(args.o, begin, end, [&](int64_t t, int64_t h) LAMINA_VECTOR_BODY {
    const T *o = head_row<T>(args.o, t, h), *gate = head_row<T>(args.gate, t, h);
    T* y = head_row<T>(args.y, t, h);
    V square[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(dim, [&](size_t i, auto part, auto n) LAMINA_VECTOR_BODY {
      const V value = load(part, o + i);
      square[n] = hn::MulAdd(value, value, square[n]);
    });
    const float mean_square = sum_of_lanes(square) / static_cast<float>(dim);
    const float rstd = 1.0f / std::sqrt(mean_square + static_cast<float>(args.eps));
    scalar(args.rstd, t, h) = rstd;
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V normed = hn::Mul(hn::Mul(load(part, o + i), hn::Set(D(), rstd)), load(part, weight + i));
      store(part, hn::Mul(normed, logistic(load(part, gate + i))), y + i);
    });
  });
}

template <class T>
void norm_backward_rows(const GatedRmsNormBackward& args, float* dweight, int64_t begin, int64_t end) {
  const auto dim = static_cast<size_t>(args.o.size(2));
  const float* weight = static_cast<const float*>(args.weight.data);
  const V one = hn::Set(D(), 1.0f);
  each_head(args.o, begin, end, [&](int64_t t, int64_t h) LAMINA_VECTOR_BODY {
    const T *o = head_row<T>(args.o, t, h), *gate = head_row<T>(args.gate, t, h), *dy = head_row<T>(args.dy, t, h);
    T *d_o = head_row<T>(args.d_o, t, h), *dgate = head_row<T>(args.dgate, t, h);
    T* y = args.y ? head_row<T>(args.y, t, h) : nullptr;
    const V rstd = hn::Set(D(), scalar(args.rstd, t, h));
    V dot[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(dim, [&](size_t i, auto part, auto n) LAMINA_VECTOR_BODY {
      const V s = logistic(load(part, gate + i)), w = load(part, weight + i), gradient = load(part, dy + i);
      const V unit = hn::Mul(load(part, o + i), rstd), gated = hn::Mul(gradient, s);
      store(part, hn::MulAdd(gated, unit, load(part, dweight + i)), dweight + i);
      const V by_gate = hn::Mul(gated, hn::Mul(unit, w));
      dot[n] = hn::Add(by_gate, dot[n]);
      store(part, hn::Mul(by_gate, hn::Sub(one, s)), dgate + i);
    });
    const V projection = hn::Set(D(), sum_of_lanes(dot) / static_cast<float>(dim));
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V s = logistic(load(part, gate + i)), w = load(part, weight + i);
      const V unit = hn::Mul(load(part, o + i), rstd);
      const V gradient = hn::Mul(load(part, dy + i), hn::Mul(s, w));
      store(part, hn::Mul(rstd, hn::NegMulAdd(projection, unit, gradient)), d_o + i);
      if (y != nullptr) store(part, hn::Mul(hn::Mul(unit, w), s), y + i);
    });
  });
}

void l2_forward(const L2NormForward& args, int64_t begin, int64_t end) {
  if (args.x.dtype == DType::bf16) return l2_forward_rows<bf16>(args, begin, end);
  l2_forward_rows<float>(args, begin, end);
}
void l2_backward(const L2NormBackward& args, int64_t begin, int64_t end) {
  if (args.y.dtype == DType::bf16) return l2_backward_rows<bf16>(args, begin, end);
  l2_backward_rows<float>(args, begin, end);
}
void gate_forward(const KdaGateForward& args, const float* rates, int64_t begin, int64_t end) {
  if (args.f.dtype == DType::bf16) {
    if (args.lower_bound) return gate_forward_rows<bf16, true>(args, rates, begin, end);
    return gate_forward_rows<bf16, false>(args, rates, begin, end);
  }
  if (args.lower_bound) return gate_forward_rows<float, true>(args, rates, begin, end);
  gate_forward_rows<float, false>(args, rates, begin, end);
}
void gate_backward(const KdaGateBackward& args, const float* rates, float* dbias, float* d_a_log, int64_t begin,
                   int64_t end) {
  if (args.f.dtype == DType::bf16) {
    if (args.lower_bound) return gate_backward_rows<bf16, true>(args, rates, dbias, d_a_log, begin, end);
    return gate_backward_rows<bf16, false>(args, rates, dbias, d_a_log, begin, end);
  }
  if (args.lower_bound) return gate_backward_rows<float, true>(args, rates, dbias, d_a_log, begin, end);
  gate_backward_rows<float, false>(args, rates, dbias, d_a_log, begin, end);
}
void norm_forward(const GatedRmsNormForward& args, int64_t begin, int64_t end) {
  if (args.o.dtype == DType::bf16) return norm_forward_rows<bf16>(args, begin, end);
  norm_forward_rows<float>(args, begin, end);
}
void norm_backward(const GatedRmsNormBackward& args, float* dweight, int64_t begin, int64_t end) {
  if (args.o.dtype == DType::bf16) return norm_backward_rows<bf16>(args, dweight, begin, end);
  norm_backward_rows<float>(args, dweight, begin, end);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(l2_forward);
HWY_EXPORT(l2_backward);
HWY_EXPORT(gate_forward);
HWY_EXPORT(gate_backward);
HWY_EXPORT(norm_forward);
HWY_EXPORT(norm_backward);

namespace {

int64_t token_size(const TensorView& view) {
  return view.size(1) * view.size(2);
}
int64_t token_grain(const TensorView& view) {
  return row_grain(token_size(view));
}

const float* exponentials(OpContext& ctx, const TensorView& a_log) {
  float* out = zeros(ctx, 1, a_log.size(0));
  for (int64_t i = 0; i < a_log.size(0); ++i) out[i] = std::exp(a_log.as<float>()[i]);
  return out;
}

}  // namespace

const char* l2_norm_forward_refuses(const L2NormForward& args) {
  return refuses_f64(args.x);
}
const char* l2_norm_backward_refuses(const L2NormBackward& args) {
  return refuses_f64(args.y);
}
const char* kda_gate_forward_refuses(const KdaGateForward& args) {
  return refuses_f64(args.f);
}
const char* kda_gate_backward_refuses(const KdaGateBackward& args) {
  return refuses_f64(args.f);
}
const char* gated_rms_norm_forward_refuses(const GatedRmsNormForward& args) {
  return refuses_f64(args.o);
}
const char* gated_rms_norm_backward_refuses(const GatedRmsNormBackward& args) {
  return refuses_f64(args.o);
}

void l2_norm_forward(OpContext&, const L2NormForward& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(l2_forward);
  lamina::cpu::parallel_for(args.x.size(0), token_grain(args.x),
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void l2_norm_backward(OpContext&, const L2NormBackward& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(l2_backward);
  lamina::cpu::parallel_for(args.y.size(0), token_grain(args.y),
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void kda_gate_forward(OpContext& ctx, const KdaGateForward& args) {
  const float* rates = exponentials(ctx, args.a_log);
  const auto run = HWY_DYNAMIC_DISPATCH(gate_forward);
  lamina::cpu::parallel_for(args.f.size(0), token_grain(args.f),
                            [&](int64_t begin, int64_t end) { run(args, rates, begin, end); });
}

void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args) {
  const int64_t tokens = args.f.size(0), heads = args.f.size(1), d_k = args.f.size(2);
  const float* rates = exponentials(ctx, args.a_log);
  const RowParts parts(tokens, token_size(args.f));
  const PartialSums dbias(ctx, parts, heads, d_k), d_a_log(ctx, parts, 1, heads);
  const auto run = HWY_DYNAMIC_DISPATCH(gate_backward);
  parts.for_each([&](int64_t part, int64_t begin, int64_t end) {
    run(args, rates, dbias.of(part), d_a_log.of(part), begin, end);
  });
  const float *bias_total = dbias.add_up(), *rate_total = d_a_log.add_up();
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t i = 0; i < d_k; ++i) args.d_dt_bias.as<float>()[h * d_k + i] += bias_total[h * padded(d_k) + i];
    args.d_a_log.as<float>()[h] += rate_total[h];
  }
}

void gated_rms_norm_forward(OpContext&, const GatedRmsNormForward& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(norm_forward);
  lamina::cpu::parallel_for(args.o.size(0), token_grain(args.o),
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args) {
  const int64_t tokens = args.o.size(0), dim = args.o.size(2);
  const RowParts parts(tokens, token_size(args.o));
  const PartialSums dweight(ctx, parts, 1, dim);
  const auto run = HWY_DYNAMIC_DISPATCH(norm_backward);
  parts.for_each([&](int64_t part, int64_t begin, int64_t end) { run(args, dweight.of(part), begin, end); });
  const float* total = dweight.add_up();
  for (int64_t i = 0; i < dim; ++i) args.dweight.as<float>()[i] += total[i];
}

}  // namespace lamina::ops::cpu
#endif
