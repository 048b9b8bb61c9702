#include "core/ops/cross_entropy/implementations.h"

#include <algorithm>
#include <cmath>

#include "core/device/cpu/parallel_for.h"
#define HWY_TARGET_INCLUDE "core/ops/cross_entropy/cpu.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

float largest_of(const float* x, size_t count) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  float largest = x[0];
  size_t i = 0;
  if (count >= 4 * lanes) {
    auto m0 = hn::LoadU(d, x), m1 = m0, m2 = m0, m3 = m0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
      m0 = hn::Max(m0, hn::LoadU(d, x + i));
      m1 = hn::Max(m1, hn::LoadU(d, x + i + lanes));
      m2 = hn::Max(m2, hn::LoadU(d, x + i + 2 * lanes));
      m3 = hn::Max(m3, hn::LoadU(d, x + i + 3 * lanes));
    }
    largest = hn::GetLane(hn::MaxOfLanes(d, hn::Max(hn::Max(m0, m1), hn::Max(m2, m3))));
  }
  for (; i < count; ++i) largest = std::max(largest, x[i]);
  return largest;
}

// The sum of exp(x - largest); with `keep`, x becomes those terms.
template <bool keep>
float sum_exp(float* x, size_t count, float largest) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto shift = hn::Set(d, largest);
  auto s0 = hn::Zero(d), s1 = hn::Zero(d);
  const auto term = [&](size_t at) HWY_ATTR {
    const auto e = fast_exp(d, hn::Sub(hn::LoadU(d, x + at), shift));
    if (keep) hn::StoreU(e, d, x + at);
    return e;
  };
  size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    s0 = hn::Add(s0, term(i));
    s1 = hn::Add(s1, term(i + lanes));
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1)));
  for (; i < count; ++i) {
    const float e = std::exp(x[i] - largest);
    if (keep) x[i] = e;
    sum += e;
  }
  return sum;
}

template <class T>
void scale_row(const float* x, size_t count, float factor, T* y) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const auto f = hn::Set(d, factor);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) store(hn::Mul(f, hn::LoadU(d, x + i)), d, y + i);
  for (; i < count; ++i) y[i] = static_cast<T>(factor * x[i]);
}

template <class T>
void softmax_row(const SoftmaxCrossEntropy& args, int64_t row) {
  const auto vocab = static_cast<size_t>(args.logits.size(1));
  float* logits = args.logits.as<float>() + row * args.logits.size(1);
  const auto target = static_cast<size_t>(args.targets.as<int32_t>()[row]);
  const float largest = largest_of(logits, vocab), below = largest - logits[target];
  const float total = args.dlogits ? sum_exp<true>(logits, vocab, largest) : sum_exp<false>(logits, vocab, largest);
  args.token_loss.as<float>()[row] = std::log(total) + below;
  if (!args.dlogits) return;
  T* dlogits = args.dlogits.as<T>() + row * args.logits.size(1);
  const float scale = static_cast<float>(args.grad_scale), of_target = scale * (logits[target] / total - 1.0f);
  scale_row(logits, vocab, scale / total, dlogits);
  dlogits[target] = static_cast<T>(of_target);
}

void softmax_rows(const SoftmaxCrossEntropy& args, int64_t begin, int64_t end) {
  const bool narrow = args.dlogits && args.dlogits.dtype == DType::bf16;
  for (int64_t row = begin; row < end; ++row) {
    if (narrow)
      softmax_row<bf16>(args, row);
    else
      softmax_row<float>(args, row);
  }
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(softmax_rows);

const char* softmax_cross_entropy_refuses(const SoftmaxCrossEntropy& args) {
  return args.logits.dtype == DType::f64 ? "vector kernels are for float32" : nullptr;
}

void softmax_cross_entropy(OpContext&, const SoftmaxCrossEntropy& args) {
  constexpr int64_t elements_per_thread = 8192;
  lamina::cpu::parallel_for(args.logits.size(0), 1 + elements_per_thread / args.logits.size(1),
                            [&](int64_t begin, int64_t end) {
                              HWY_DYNAMIC_DISPATCH(softmax_rows)
                              (args, begin, end);
                            });
}

}  // namespace lamina::ops::cpu
#endif
