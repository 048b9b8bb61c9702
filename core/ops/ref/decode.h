#pragma once

#include "core/ops/decode.h"

namespace lamina::ops::ref {

void short_conv_step(OpContext& ctx, const ShortConvStep& args);
void kda_step(OpContext& ctx, const KdaStep& args);
void latent_attention(OpContext& ctx, const LatentAttention& args);
void copy_rows(OpContext& ctx, const CopyRows& args);

}  // namespace lamina::ops::ref
