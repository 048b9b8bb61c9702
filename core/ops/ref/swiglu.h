#pragma once

#include "core/ops/swiglu.h"

namespace lamina::ops::ref {

void swiglu_forward(OpContext& ctx, const SwigluForward& args);
void swiglu_backward(OpContext& ctx, const SwigluBackward& args);

}  // namespace lamina::ops::ref
