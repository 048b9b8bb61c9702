// What core/ops/attention chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/attention/attention.h"

namespace lamina::ops {

namespace ref {
void attention_forward(OpContext& ctx, const AttentionForward& args);
void attention_backward(OpContext& ctx, const AttentionBackward& args);
void pack_shared_keys(OpContext& ctx, const PackSharedKeys& args);
void unpack_shared_keys(OpContext& ctx, const UnpackSharedKeys& args);
}  // namespace ref

namespace cpu {
const char* attention_forward_refuses(const AttentionForward& args);
const char* attention_backward_refuses(const AttentionBackward& args);
void attention_forward(OpContext& ctx, const AttentionForward& args);
void attention_backward(OpContext& ctx, const AttentionBackward& args);
}  // namespace cpu

namespace cuda {
const char* attention_forward_refuses(const AttentionForward& args);
void attention_forward(OpContext& ctx, const AttentionForward& args);

const char* attention_backward_refuses(const AttentionBackward& args);
void attention_backward(OpContext& ctx, const AttentionBackward& args);

const char* pack_shared_keys_refuses(const PackSharedKeys& args);
void pack_shared_keys(OpContext& ctx, const PackSharedKeys& args);

const char* unpack_shared_keys_refuses(const UnpackSharedKeys& args);
void unpack_shared_keys(OpContext& ctx, const UnpackSharedKeys& args);
}  // namespace cuda

}  // namespace lamina::ops
