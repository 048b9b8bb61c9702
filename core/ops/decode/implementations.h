// What core/ops/decode chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/decode/decode.h"

namespace lamina::ops {

namespace ref {
void short_conv_step(OpContext& ctx, const ShortConvStep& args);
void kda_step(OpContext& ctx, const KdaStep& args);
void latent_attention(OpContext& ctx, const LatentAttention& args);
void copy_rows(OpContext& ctx, const CopyRows& args);
}  // namespace ref

namespace cpu {
const char* short_conv_step_refuses(const ShortConvStep& args);
void short_conv_step(OpContext& ctx, const ShortConvStep& args);
const char* kda_step_refuses(const KdaStep& args);
void kda_step(OpContext& ctx, const KdaStep& args);
const char* latent_attention_refuses(const LatentAttention& args);
void latent_attention(OpContext& ctx, const LatentAttention& args);
}  // namespace cpu

namespace cuda {
const char* short_conv_step_refuses(const ShortConvStep& args);
void short_conv_step(OpContext& ctx, const ShortConvStep& args);
const char* kda_step_refuses(const KdaStep& args);
void kda_step(OpContext& ctx, const KdaStep& args);
const char* latent_attention_refuses(const LatentAttention& args);
void latent_attention(OpContext& ctx, const LatentAttention& args);
const char* copy_rows_refuses(const CopyRows& args);
void copy_rows(OpContext& ctx, const CopyRows& args);
}  // namespace cuda

}  // namespace lamina::ops
