// One more token of several sequences on NVIDIA GPUs; see decode_kernels.cu and short_conv_kernels.cu.
#pragma once

#include "core/ops/decode.h"

namespace lamina::ops::cuda {

const char* short_conv_step_refuses(const ShortConvStep& args);
void short_conv_step(OpContext& ctx, const ShortConvStep& args);
const char* kda_step_refuses(const KdaStep& args);
void kda_step(OpContext& ctx, const KdaStep& args);
const char* latent_attention_refuses(const LatentAttention& args);
void latent_attention(OpContext& ctx, const LatentAttention& args);
const char* copy_rows_refuses(const CopyRows& args);
void copy_rows(OpContext& ctx, const CopyRows& args);

}  // namespace lamina::ops::cuda
