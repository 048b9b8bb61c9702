#pragma once

#include "core/ops/kda.h"

namespace lamina::ops::cuda {

const char* kda_forward_refuses(const KdaForward& args);
void kda_forward(OpContext& ctx, const KdaForward& args);
const char* kda_backward_refuses(const KdaBackward& args);
void kda_backward(OpContext& ctx, const KdaBackward& args);

}  // namespace lamina::ops::cuda
