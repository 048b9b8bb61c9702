#include <algorithm>

#include "core/ops/decode/implementations.h"
#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/decode/cpu_short_conv_step.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/simd/sigmoid-inl.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

// `weight` [taps, padded(channels)] for the channels [first, last): the taps of a channel lie next to each other in memory.
void taps_apart(const ShortConvStep& args, int64_t first, int64_t last, float* weight) {
  const int64_t taps = args.weight.size(1), stride = padded(args.x.size(1));
  const float* from = args.weight.as<float>();
  for (int64_t channel = first; channel < last; ++channel) {
    for (int64_t i = 0; i < taps; ++i) weight[i * stride + channel] = from[channel * taps + i];
  }
}

// One vector of channels. Its memory is read before it moves up by one.
template <class T, class Part>
HWY_INLINE void step_vector(Part part, const float* weight, int64_t stride, int64_t taps, T* tail, int64_t tail_step,
                            const T* x, T* y) {
  const V now = load(part, x);
  V sum = hn::Zero(D());
  for (int64_t i = 0; i + 1 < taps; ++i) {
    const V before = load(part, tail + i * tail_step);
    sum = hn::MulAdd(load(part, weight + i * stride), before, sum);
    if (i > 0) store(part, before, tail + (i - 1) * tail_step);
  }
  if (taps > 1) store(part, now, tail + (taps - 2) * tail_step);
  sum = hn::MulAdd(load(part, weight + (taps - 1) * stride), now, sum);
  store(part, hn::Mul(sum, logistic(sum)), y);
}

template <class T>
void step_channels(const ShortConvStep& args, float* weight, int64_t first, int64_t last) {
  const int64_t taps = args.weight.size(1), stride = padded(args.x.size(1));
  taps_apart(args, first, last, weight);
  for (int64_t s = 0; s < args.x.size(0); ++s) {
    const TensorView& tail = args.tails[static_cast<size_t>(s)];
    T* memory = static_cast<T*>(tail.data) + first;
    const T* x = row<T>(args.x, s) + first;
    T* y = row<T>(args.y, s) + first;
    each_vector(static_cast<size_t>(last - first), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      step_vector(part, weight + first + i, stride, taps, memory + i, tail.stride(0), x + i, y + i);
    });
  }
}

void conv_step(const ShortConvStep& args, float* weight, int64_t first, int64_t last) {
  if (args.x.dtype == DType::bf16) return step_channels<bf16>(args, weight, first, last);
  step_channels<float>(args, weight, first, last);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(conv_step);

const char* short_conv_step_refuses(const ShortConvStep& args) {
  return refuses_f64(args.x);
}

void short_conv_step(OpContext& ctx, const ShortConvStep& args) {
  const int64_t channels = args.x.size(1), taps = args.weight.size(1);
  float* weight = ctx.scratch.take(DType::f32, {taps, padded(channels)}).as<float>();
  const auto run = HWY_DYNAMIC_DISPATCH(conv_step);
  const int64_t work = taps * (2 + args.x.size(0));  // per channel
  lamina::cpu::parallel_for(channels, 1 + elements_per_thread / work,
                            [&](int64_t first, int64_t last) { run(args, weight, first, last); });
}

}  // namespace lamina::ops::cpu
#endif
