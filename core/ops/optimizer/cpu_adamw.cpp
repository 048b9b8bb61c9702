#include "core/ops/optimizer/implementations.h"

#include "core/ops/optimizer/adamw_scalars.h"
#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/optimizer/cpu_adamw.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

// The reference's operations in its order, fused where it fuses: the same bits on processors with fused multiply-add.
template <class T, bool with_param>
void update(const AdamW& args, const AdamWScalars<float>& s, int64_t begin, int64_t end) {
  float* master = static_cast<float*>(args.master.data) + begin;
  const float* grad = static_cast<const float*>(args.grad.data) + begin;
  float* first = static_cast<float*>(args.m.data) + begin;
  float* second = static_cast<float*>(args.v.data) + begin;
  T* param = with_param ? static_cast<T*>(args.param.data) + begin : nullptr;
  const auto set = [](float value) LAMINA_VECTOR_BODY { return hn::Set(D(), value); };
  const V beta1 = set(s.beta1), one_minus_beta1 = set(s.one_minus_beta1), beta2 = set(s.beta2),
          one_minus_beta2 = set(s.one_minus_beta2), grad_scale = set(s.grad_scale), decay = set(s.decay),
          step_size = set(s.step_size), correction = set(s.inverse_correction2), eps = set(s.eps);
  each_vector(static_cast<size_t>(end - begin), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    const V g = hn::Mul(grad_scale, load(part, grad + i));
    const V m = hn::MulAdd(one_minus_beta1, g, hn::Mul(beta1, load(part, first + i)));
    const V v = hn::MulAdd(one_minus_beta2, hn::Mul(g, g), hn::Mul(beta2, load(part, second + i)));
    const V root = hn::Add(hn::Sqrt(hn::Mul(v, correction)), eps);
    const V w = hn::MulSub(decay, load(part, master + i), hn::Div(hn::Mul(step_size, m), root));
    store(part, m, first + i);
    store(part, v, second + i);
    store(part, w, master + i);
    if constexpr (with_param) store(part, w, param + i);
  });
}

void adamw_range(const AdamW& args, const AdamWScalars<float>& s, int64_t begin, int64_t end) {
  if (!args.param) return update<float, false>(args, s, begin, end);
  if (args.param.dtype == DType::bf16) return update<bf16, true>(args, s, begin, end);
  update<float, true>(args, s, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(adamw_range);

const char* adamw_refuses(const AdamW& args) {
  return refuses_f64(args.master);
}

void adamw(OpContext&, const AdamW& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(adamw_range);
  const AdamWScalars<float> scalars(args);
  lamina::cpu::parallel_for(args.master.size(0), elements_per_thread,
                            [&](int64_t begin, int64_t end) { run(args, scalars, begin, end); });
}

}  // namespace lamina::ops::cpu
#endif
