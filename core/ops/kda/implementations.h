// What core/ops/kda chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/kda/kda.h"

namespace lamina::ops {

namespace ref {
void kda_forward(OpContext& ctx, const KdaForward& args);
void kda_backward(OpContext& ctx, const KdaBackward& args);

void l2_norm_forward(OpContext& ctx, const L2NormForward& args);
void l2_norm_backward(OpContext& ctx, const L2NormBackward& args);
void kda_gate_forward(OpContext& ctx, const KdaGateForward& args);
void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args);
void gated_rms_norm_forward(OpContext& ctx, const GatedRmsNormForward& args);
void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args);
}  // namespace ref

namespace cpu {
const char* kda_forward_refuses(const KdaForward& args);
void kda_forward(OpContext& ctx, const KdaForward& args);
const char* kda_backward_refuses(const KdaBackward& args);
void kda_backward(OpContext& ctx, const KdaBackward& args);

const char* l2_norm_forward_refuses(const L2NormForward& args);
void l2_norm_forward(OpContext& ctx, const L2NormForward& args);
const char* l2_norm_backward_refuses(const L2NormBackward& args);
void l2_norm_backward(OpContext& ctx, const L2NormBackward& args);
const char* kda_gate_forward_refuses(const KdaGateForward& args);
void kda_gate_forward(OpContext& ctx, const KdaGateForward& args);
const char* kda_gate_backward_refuses(const KdaGateBackward& args);
void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args);
const char* gated_rms_norm_forward_refuses(const GatedRmsNormForward& args);
void gated_rms_norm_forward(OpContext& ctx, const GatedRmsNormForward& args);
const char* gated_rms_norm_backward_refuses(const GatedRmsNormBackward& args);
void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args);
}  // namespace cpu

namespace cuda {
const char* kda_forward_refuses(const KdaForward& args);
void kda_forward(OpContext& ctx, const KdaForward& args);
const char* kda_backward_refuses(const KdaBackward& args);
void kda_backward(OpContext& ctx, const KdaBackward& args);
const char* l2_norm_forward_refuses(const L2NormForward& args);
void l2_norm_forward(OpContext& ctx, const L2NormForward& args);
const char* l2_norm_backward_refuses(const L2NormBackward& args);
void l2_norm_backward(OpContext& ctx, const L2NormBackward& args);
const char* kda_gate_forward_refuses(const KdaGateForward& args);
void kda_gate_forward(OpContext& ctx, const KdaGateForward& args);
const char* kda_gate_backward_refuses(const KdaGateBackward& args);
void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args);
const char* gated_rms_norm_forward_refuses(const GatedRmsNormForward& args);
void gated_rms_norm_forward(OpContext& ctx, const GatedRmsNormForward& args);
const char* gated_rms_norm_backward_refuses(const GatedRmsNormBackward& args);
void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args);
}  // namespace cuda

}  // namespace lamina::ops
