// What stands around Kimi Delta Attention on NVIDIA GPUs; see kda_gate_kernels.cu.
#pragma once

#include "core/ops/kda.h"

namespace lamina::ops::cuda {

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

}  // namespace lamina::ops::cuda
