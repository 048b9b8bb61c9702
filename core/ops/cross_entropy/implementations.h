// What core/ops/cross_entropy chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/cross_entropy/softmax_cross_entropy.h"

namespace lamina::ops {

namespace ref {
void softmax_cross_entropy(OpContext& ctx, const SoftmaxCrossEntropy& args);
}  // namespace ref

namespace cpu {
const char* softmax_cross_entropy_refuses(const SoftmaxCrossEntropy& args);
void softmax_cross_entropy(OpContext& ctx, const SoftmaxCrossEntropy& args);
}  // namespace cpu

namespace cuda {
const char* softmax_cross_entropy_refuses(const SoftmaxCrossEntropy& args);
void softmax_cross_entropy(OpContext& ctx, const SoftmaxCrossEntropy& args);
}  // namespace cuda

}  // namespace lamina::ops
