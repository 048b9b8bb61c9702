// What core/ops/matmul chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/matmul/matmul.h"

namespace lamina::ops {

namespace ref {
void matmul(OpContext& ctx, const Matmul& args);
}  // namespace ref

namespace cpu {
const char* matmul_refuses(const Matmul& args);
void matmul(OpContext& ctx, const Matmul& args);

// bf16 through fp32.
void matmul_widened(OpContext& ctx, const Matmul& args);
}  // namespace cpu

namespace cuda {
// cuBLAS. Limit: 2 M N K FLOPs on tensor cores for bf16, on ordinary cores for fp32.
const char* matmul_refuses(const Matmul& args);
void matmul(OpContext& ctx, const Matmul& args);
}  // namespace cuda

}  // namespace lamina::ops
