#include "core/ops/optimizer/implementations.h"

#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/optimizer/cpu_muon.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

void momentum_range(const MuonMomentum& args, int64_t begin, int64_t end) {
  const float* grad = static_cast<const float*>(args.grad.data) + begin;
  float* buffer = static_cast<float*>(args.buffer.data) + begin;
  float* out = static_cast<float*>(args.out.data) + begin;
  const V momentum = hn::Set(D(), static_cast<float>(args.momentum));
  const V scale = hn::Set(D(), static_cast<float>(args.grad_scale));
  each_vector(static_cast<size_t>(end - begin), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    const V g = hn::Mul(scale, load(part, grad + i));
    const V b = hn::MulAdd(momentum, load(part, buffer + i), g);
    store(part, b, buffer + i);
    store(part, hn::MulAdd(momentum, b, g), out + i);
  });
}

template <class T, bool with_param>
void update(const MuonApply& args, int64_t begin, int64_t end) {
  float* master = static_cast<float*>(args.master.data) + begin;
  const float* change = static_cast<const float*>(args.update.data) + begin;
  T* param = with_param ? static_cast<T*>(args.param.data) + begin : nullptr;
  const V decay = hn::Set(D(), static_cast<float>(1.0 - args.lr * args.weight_decay));
  const V step = hn::Set(D(), static_cast<float>(args.lr * args.update_scale));
  each_vector(static_cast<size_t>(end - begin), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    const V w = hn::MulSub(decay, load(part, master + i), hn::Mul(step, load(part, change + i)));
    store(part, w, master + i);
    if constexpr (with_param) store(part, w, param + i);
  });
}

void apply_range(const MuonApply& args, int64_t begin, int64_t end) {
  if (!args.param) return update<float, false>(args, begin, end);
  if (args.param.dtype == DType::bf16) return update<bf16, true>(args, begin, end);
  update<float, true>(args, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(momentum_range);
HWY_EXPORT(apply_range);

const char* muon_momentum_refuses(const MuonMomentum& args) {
  return refuses_f64(args.grad);
}
const char* muon_apply_refuses(const MuonApply& args) {
  return refuses_f64(args.master);
}

void muon_momentum(OpContext&, const MuonMomentum& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(momentum_range);
  lamina::cpu::parallel_for(args.grad.size(0), elements_per_thread,
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}
void muon_apply(OpContext&, const MuonApply& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(apply_range);
  lamina::cpu::parallel_for(args.master.size(0), elements_per_thread,
                            [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

}  // namespace lamina::ops::cpu
#endif
