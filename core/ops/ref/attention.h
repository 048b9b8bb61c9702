#pragma once

#include "core/ops/attention.h"

namespace lamina::ops::ref {

void attention_forward(OpContext& ctx, const AttentionForward& args);
void attention_backward(OpContext& ctx, const AttentionBackward& args);
void pack_shared_keys(OpContext& ctx, const PackSharedKeys& args);
void unpack_shared_keys(OpContext& ctx, const UnpackSharedKeys& args);

}  // namespace lamina::ops::ref
