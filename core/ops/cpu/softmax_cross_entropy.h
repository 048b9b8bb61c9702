#pragma once

#include "core/ops/softmax_cross_entropy.h"

namespace lamina::ops::cpu {

const char* refuses(const SoftmaxCrossEntropy& args);
void softmax_cross_entropy(OpContext& ctx, const SoftmaxCrossEntropy& args);

}  // namespace lamina::ops::cpu
