#include "core/ops/cross_entropy/implementations.h"

#include <algorithm>
#include <cmath>

#include "core/device/cpu/parallel_for.h"

namespace lamina::ops::ref {
namespace {

template <class Acc, class Gradient>
void softmax_row(const SoftmaxCrossEntropy& args, int64_t row) {
  const int64_t vocab = args.logits.size(1);
  const Acc* logits = args.logits.as<Acc>() + row * vocab;
  const int64_t target = args.targets.as<int32_t>()[row];
  const Acc largest = *std::max_element(logits, logits + vocab);
  Acc total = 0;
  for (int64_t v = 0; v < vocab; ++v) total += std::exp(logits[v] - largest);
  // (largest - logit) first: it is exact when the target is the largest, and then the loss is log(total) to full
  // precision.
  args.token_loss.as<Acc>()[row] = std::log(total) + (largest - logits[target]);
  if (!args.dlogits) return;
  Gradient* dlogits = args.dlogits.as<Gradient>() + row * vocab;
  const Acc scale = static_cast<Acc>(args.grad_scale);
  for (int64_t v = 0; v < vocab; ++v) {
    const Acc p = std::exp(logits[v] - largest) / total;
    dlogits[v] = static_cast<Gradient>(scale * (v == target ? p - 1 : p));
  }
}

template <class Acc, class Gradient>
void softmax_rows(const SoftmaxCrossEntropy& args) {
  lamina::cpu::parallel_for(args.logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) softmax_row<Acc, Gradient>(args, row);
  });
}

}  // namespace

void softmax_cross_entropy(OpContext&, const SoftmaxCrossEntropy& args) {
  if (args.logits.dtype == DType::f64) return softmax_rows<double, double>(args);
  if (args.dlogits && args.dlogits.dtype == DType::bf16) return softmax_rows<float, bf16>(args);
  softmax_rows<float, float>(args);
}

}  // namespace lamina::ops::ref
