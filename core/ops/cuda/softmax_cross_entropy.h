#pragma once

#include "core/ops/softmax_cross_entropy.h"

namespace lamina::ops::cuda {

const char* softmax_cross_entropy_refuses(const SoftmaxCrossEntropy& args);
void softmax_cross_entropy(OpContext& ctx, const SoftmaxCrossEntropy& args);

}  // namespace lamina::ops::cuda
