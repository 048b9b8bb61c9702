#include "core/ops/rms_norm/implementations.h"

#include <cmath>

#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/rms_norm/cpu.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

template <class T>
void forward_rows(const RmsNormForward& args, const float* weight, int64_t begin, int64_t end) {
  const size_t dim = static_cast<size_t>(args.x.size(1));
  for (int64_t r = begin; r < end; ++r) {
    const T* x = row<T>(args.x, r);
    V square[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    if (args.sum) {
      const T* delta = row<T>(args.delta, r);
      T* sum = row<T>(args.sum, r);
      each_vector_by_4(dim, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
        const V v = rounded<T>(hn::Add(load(part, x + i), load(part, delta + i)));
        store(part, v, sum + i);
        square[k] = hn::MulAdd(v, v, square[k]);
      });
      x = sum;
    } else {
      each_vector_by_4(dim, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
        const V v = load(part, x + i);
        square[k] = hn::MulAdd(v, v, square[k]);
      });
    }
    const float mean_square = sum_of_lanes(square) / static_cast<float>(dim);
    const float rstd = 1.0f / std::sqrt(mean_square + static_cast<float>(args.eps));
    static_cast<float*>(args.rstd.data)[r] = rstd;
    T* y = row<T>(args.y, r);
    const V scale = hn::Set(D(), rstd);
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      store(part, hn::Mul(hn::Mul(load(part, x + i), scale), hn::LoadU(D(), weight + i)), y + i);
    });
  }
}

template <class T, class G>
void backward_rows(const RmsNormBackward& args, const float* weight, float* dweight, int64_t begin, int64_t end) {
  const size_t dim = static_cast<size_t>(args.x.size(1));
  const bool accumulate = args.dx_mode == GradMode::accumulate;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = row<T>(args.x, r);
    const T* dy = row<T>(args.dy, r);
    G* dx = row<G>(args.dx, r);
    V dot[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(dim, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
      const V weighted = hn::Mul(load(part, dy + i), hn::LoadU(D(), weight + i));
      dot[k] = hn::MulAdd(weighted, load(part, x + i), dot[k]);
    });
    const float rstd = static_cast<const float*>(args.rstd.data)[r];
    const V scale = hn::Set(D(), rstd);
    const V projection = hn::Set(D(), sum_of_lanes(dot) * rstd * rstd * rstd / static_cast<float>(dim));
    each_vector(dim, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      const V value = load(part, x + i);
      const V scaled = hn::Mul(load(part, dy + i), scale);
      hn::StoreU(hn::MulAdd(scaled, value, hn::LoadU(D(), dweight + i)), D(), dweight + i);
      V gradient = hn::NegMulAdd(projection, value, hn::Mul(scaled, hn::LoadU(D(), weight + i)));
      if (accumulate) gradient = hn::Add(gradient, load(part, dx + i));
      store(part, gradient, dx + i);
    });
  }
}

template <class T>
void apply_rows(const RmsNormApply& args, const float* weight, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* x = row<T>(args.x, r);
    T* y = row<T>(args.y, r);
    const V scale = hn::Set(D(), static_cast<const float*>(args.rstd.data)[r]);
    each_vector(static_cast<size_t>(args.x.size(1)), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      store(part, hn::Mul(hn::Mul(load(part, x + i), scale), hn::LoadU(D(), weight + i)), y + i);
    });
  }
}

void rms_forward(const RmsNormForward& args, const float* weight, int64_t begin, int64_t end) {
  if (args.x.dtype == DType::bf16) return forward_rows<bf16>(args, weight, begin, end);
  forward_rows<float>(args, weight, begin, end);
}
void rms_backward(const RmsNormBackward& args, const float* weight, float* dweight, int64_t begin, int64_t end) {
  if (args.x.dtype == DType::f32) return backward_rows<float, float>(args, weight, dweight, begin, end);
  if (args.dx.dtype == DType::f32) return backward_rows<bf16, float>(args, weight, dweight, begin, end);
  backward_rows<bf16, bf16>(args, weight, dweight, begin, end);
}
void rms_apply(const RmsNormApply& args, const float* weight, int64_t begin, int64_t end) {
  if (args.x.dtype == DType::bf16) return apply_rows<bf16>(args, weight, begin, end);
  apply_rows<float>(args, weight, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(rms_forward);
HWY_EXPORT(rms_backward);
HWY_EXPORT(rms_apply);

const char* rms_norm_forward_refuses(const RmsNormForward& args) {
  return refuses_f64(args.x);
}
const char* rms_norm_backward_refuses(const RmsNormBackward& args) {
  return refuses_f64(args.x);
}
const char* rms_norm_apply_refuses(const RmsNormApply& args) {
  return refuses_f64(args.x);
}

void rms_norm_forward(OpContext& ctx, const RmsNormForward& args) {
  const float* weight = as_floats(ctx, args.weight);
  const auto run = HWY_DYNAMIC_DISPATCH(rms_forward);
  lamina::cpu::parallel_for(args.x.size(0), row_grain(args.x.size(1)),
                            [&](int64_t begin, int64_t end) { run(args, weight, begin, end); });
}

void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args) {
  const int64_t rows = args.x.size(0), dim = args.x.size(1);
  const float* weight = as_floats(ctx, args.weight);
  const RowParts parts(rows, dim);
  const PartialSums dweight(ctx, parts, 1, dim);
  const auto run = HWY_DYNAMIC_DISPATCH(rms_backward);
  parts.for_each([&](int64_t part, int64_t begin, int64_t end) { run(args, weight, dweight.of(part), begin, end); });
  const float* total = dweight.add_up();
  for (int64_t i = 0; i < dim; ++i) args.dweight.as<float>()[i] += total[i];
}

void rms_norm_apply(OpContext& ctx, const RmsNormApply& args) {
  const float* weight = as_floats(ctx, args.weight);
  const auto run = HWY_DYNAMIC_DISPATCH(rms_apply);
  lamina::cpu::parallel_for(args.x.size(0), row_grain(args.x.size(1)),
                            [&](int64_t begin, int64_t end) { run(args, weight, begin, end); });
}

}  // namespace lamina::ops::cpu
#endif
