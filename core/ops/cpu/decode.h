#pragma once

#include "core/ops/decode.h"

namespace lamina::ops::cpu {

const char* short_conv_step_refuses(const ShortConvStep& args);
void short_conv_step(OpContext& ctx, const ShortConvStep& args);
const char* kda_step_refuses(const KdaStep& args);
void kda_step(OpContext& ctx, const KdaStep& args);
const char* latent_attention_refuses(const LatentAttention& args);
void latent_attention(OpContext& ctx, const LatentAttention& args);

}  // namespace lamina::ops::cpu
