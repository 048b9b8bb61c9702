#pragma once

#include "core/ops/attn_res.h"

namespace lamina::ops::ref {

void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args);
void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args);
void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args);
void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args);
void attn_res_depth_weights(OpContext& ctx, const AttnResDepthWeights& args);
void attn_res_source_cosines(OpContext& ctx, const AttnResSourceCosines& args);

}  // namespace lamina::ops::ref
