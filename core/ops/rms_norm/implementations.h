// What core/ops/rms_norm chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/rms_norm/rms_norm.h"

namespace lamina::ops {

namespace ref {
void rms_norm_forward(OpContext& ctx, const RmsNormForward& args);
void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args);
void rms_norm_apply(OpContext& ctx, const RmsNormApply& args);
}  // namespace ref

namespace cpu {
const char* rms_norm_forward_refuses(const RmsNormForward& args);
void rms_norm_forward(OpContext& ctx, const RmsNormForward& args);
const char* rms_norm_backward_refuses(const RmsNormBackward& args);
void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args);
const char* rms_norm_apply_refuses(const RmsNormApply& args);
void rms_norm_apply(OpContext& ctx, const RmsNormApply& args);
}  // namespace cpu

namespace cuda {
const char* rms_norm_forward_refuses(const RmsNormForward& args);
void rms_norm_forward(OpContext& ctx, const RmsNormForward& args);

const char* rms_norm_backward_refuses(const RmsNormBackward& args);
void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args);

const char* rms_norm_apply_refuses(const RmsNormApply& args);
void rms_norm_apply(OpContext& ctx, const RmsNormApply& args);
}  // namespace cuda

}  // namespace lamina::ops
