#pragma once

#include "core/ops/swiglu.h"

namespace lamina::ops::cuda {

const char* swiglu_forward_refuses(const SwigluForward& args);
void swiglu_forward(OpContext& ctx, const SwigluForward& args);

const char* swiglu_backward_refuses(const SwigluBackward& args);
void swiglu_backward(OpContext& ctx, const SwigluBackward& args);

}  // namespace lamina::ops::cuda
