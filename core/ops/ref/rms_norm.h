#pragma once

#include "core/ops/rms_norm.h"

namespace lamina::ops::ref {

void rms_norm_forward(OpContext& ctx, const RmsNormForward& args);
void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args);
void rms_norm_apply(OpContext& ctx, const RmsNormApply& args);

}  // namespace lamina::ops::ref
