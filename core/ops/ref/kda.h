#pragma once

#include "core/ops/kda.h"

namespace lamina::ops::ref {

void kda_forward(OpContext& ctx, const KdaForward& args);
void kda_backward(OpContext& ctx, const KdaBackward& args);

void l2_norm_forward(OpContext& ctx, const L2NormForward& args);
void l2_norm_backward(OpContext& ctx, const L2NormBackward& args);
void kda_gate_forward(OpContext& ctx, const KdaGateForward& args);
void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args);
void gated_rms_norm_forward(OpContext& ctx, const GatedRmsNormForward& args);
void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args);

}  // namespace lamina::ops::ref
