#pragma once

#include "core/ops/matmul.h"

namespace lamina::ops::cpu {

const char* refuses(const Matmul& args);
void matmul(OpContext& ctx, const Matmul& args);

// bf16 through fp32.
void matmul_widened(OpContext& ctx, const Matmul& args);

}  // namespace lamina::ops::cpu
