// What core/ops/swiglu chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/swiglu/swiglu.h"

namespace lamina::ops {

namespace ref {
void swiglu_forward(OpContext& ctx, const SwigluForward& args);
void swiglu_backward(OpContext& ctx, const SwigluBackward& args);
}  // namespace ref

namespace cpu {
const char* swiglu_forward_refuses(const SwigluForward& args);
void swiglu_forward(OpContext& ctx, const SwigluForward& args);
const char* swiglu_backward_refuses(const SwigluBackward& args);
void swiglu_backward(OpContext& ctx, const SwigluBackward& args);
}  // namespace cpu

namespace cuda {
const char* swiglu_forward_refuses(const SwigluForward& args);
void swiglu_forward(OpContext& ctx, const SwigluForward& args);

const char* swiglu_backward_refuses(const SwigluBackward& args);
void swiglu_backward(OpContext& ctx, const SwigluBackward& args);
}  // namespace cuda

}  // namespace lamina::ops
