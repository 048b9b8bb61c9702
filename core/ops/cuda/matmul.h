#pragma once

#include "core/ops/matmul.h"

namespace lamina::ops::cuda {

// cuBLAS. Limit: 2 M N K FLOPs on tensor cores for bf16, on ordinary cores for fp32.
const char* matmul_refuses(const Matmul& args);
void matmul(OpContext& ctx, const Matmul& args);

}  // namespace lamina::ops::cuda
