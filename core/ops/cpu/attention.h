#pragma once

#include "core/ops/attention.h"

namespace lamina::ops::cpu {

const char* refuses(const AttentionForward& args);
const char* refuses(const AttentionBackward& args);
void attention_forward(OpContext& ctx, const AttentionForward& args);
void attention_backward(OpContext& ctx, const AttentionBackward& args);

}  // namespace lamina::ops::cpu
