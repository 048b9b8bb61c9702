// Attention and MLA's keys on a GPU. bf16 runs on tensor cores up to 256 wide heads, everything else in fp32 arithmetic.
#pragma once

#include "core/ops/attention.h"

namespace lamina::ops::cuda {

const char* attention_forward_refuses(const AttentionForward& args);
void attention_forward(OpContext& ctx, const AttentionForward& args);

const char* attention_backward_refuses(const AttentionBackward& args);
void attention_backward(OpContext& ctx, const AttentionBackward& args);

const char* pack_shared_keys_refuses(const PackSharedKeys& args);
void pack_shared_keys(OpContext& ctx, const PackSharedKeys& args);

const char* unpack_shared_keys_refuses(const UnpackSharedKeys& args);
void unpack_shared_keys(OpContext& ctx, const UnpackSharedKeys& args);

}  // namespace lamina::ops::cuda
