// What core/ops/short_conv chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/short_conv/short_conv.h"

namespace lamina::ops {

namespace ref {
void short_conv_forward(OpContext& ctx, const ShortConvForward& args);
void short_conv_backward(OpContext& ctx, const ShortConvBackward& args);
}  // namespace ref

namespace cpu {
const char* short_conv_forward_refuses(const ShortConvForward& args);
void short_conv_forward(OpContext& ctx, const ShortConvForward& args);
const char* short_conv_backward_refuses(const ShortConvBackward& args);
void short_conv_backward(OpContext& ctx, const ShortConvBackward& args);
}  // namespace cpu

namespace cuda {
const char* short_conv_forward_refuses(const ShortConvForward& args);
void short_conv_forward(OpContext& ctx, const ShortConvForward& args);
const char* short_conv_backward_refuses(const ShortConvBackward& args);
void short_conv_backward(OpContext& ctx, const ShortConvBackward& args);
}  // namespace cuda

}  // namespace lamina::ops
