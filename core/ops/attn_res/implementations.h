// What core/ops/attn_res chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/attn_res/attn_res.h"

namespace lamina::ops {

namespace ref {
void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args);
void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args);
void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args);
void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args);
void attn_res_depth_weights(OpContext& ctx, const AttnResDepthWeights& args);
void attn_res_source_cosines(OpContext& ctx, const AttnResSourceCosines& args);
}  // namespace ref

namespace cpu {
const char* attn_res_phase1_forward_refuses(const AttnResPhase1Forward& args);
void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args);
const char* attn_res_merge_forward_refuses(const AttnResMergeForward& args);
void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args);
const char* attn_res_merge_backward_refuses(const AttnResMergeBackward& args);
void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args);
const char* attn_res_phase1_backward_refuses(const AttnResPhase1Backward& args);
void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args);
}  // namespace cpu

namespace cuda {
const char* attn_res_phase1_forward_refuses(const AttnResPhase1Forward& args);
void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args);
const char* attn_res_merge_forward_refuses(const AttnResMergeForward& args);
void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args);
const char* attn_res_merge_backward_refuses(const AttnResMergeBackward& args);
void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args);
const char* attn_res_phase1_backward_refuses(const AttnResPhase1Backward& args);
void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args);
const char* attn_res_depth_weights_refuses(const AttnResDepthWeights& args);
void attn_res_depth_weights(OpContext& ctx, const AttnResDepthWeights& args);
const char* attn_res_source_cosines_refuses(const AttnResSourceCosines& args);
void attn_res_source_cosines(OpContext& ctx, const AttnResSourceCosines& args);
}  // namespace cuda

}  // namespace lamina::ops
