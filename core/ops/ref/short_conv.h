#pragma once

#include "core/ops/short_conv.h"

namespace lamina::ops::ref {

void short_conv_forward(OpContext& ctx, const ShortConvForward& args);
void short_conv_backward(OpContext& ctx, const ShortConvBackward& args);

}  // namespace lamina::ops::ref
