// The short convolution on NVIDIA GPUs; see short_conv_kernels.cu.
#pragma once

#include "core/ops/short_conv.h"

namespace lamina::ops::cuda {

const char* short_conv_forward_refuses(const ShortConvForward& args);
void short_conv_forward(OpContext& ctx, const ShortConvForward& args);
const char* short_conv_backward_refuses(const ShortConvBackward& args);
void short_conv_backward(OpContext& ctx, const ShortConvBackward& args);

}  // namespace lamina::ops::cuda
