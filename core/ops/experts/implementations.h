// What core/ops/experts chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/experts/experts.h"

namespace lamina::ops {

namespace ref {
void group_rows(OpContext& ctx, const GroupRows& args);
void gather_rows(OpContext& ctx, const GatherRows& args);
void combine_rows(OpContext& ctx, const CombineRows& args);
void grouped_linear(OpContext& ctx, const GroupedLinear& args);
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args);
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args);
}  // namespace ref

namespace cpu {
const char* gather_rows_refuses(const GatherRows& args);
void gather_rows(OpContext& ctx, const GatherRows& args);
const char* combine_rows_refuses(const CombineRows& args);
void combine_rows(OpContext& ctx, const CombineRows& args);

const char* grouped_linear_refuses(const GroupedLinear& args);
void grouped_linear(OpContext& ctx, const GroupedLinear& args);
const char* grouped_linear_input_gradient_refuses(const GroupedLinearInputGradient& args);
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args);
const char* grouped_linear_weight_gradient_refuses(const GroupedLinearWeightGradient& args);
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args);
}  // namespace cpu

namespace cuda {
// Limit of the first three: bytes.
const char* group_rows_refuses(const GroupRows& args);
void group_rows(OpContext& ctx, const GroupRows& args);
const char* gather_rows_refuses(const GatherRows& args);
void gather_rows(OpContext& ctx, const GatherRows& args);
const char* combine_rows_refuses(const CombineRows& args);
void combine_rows(OpContext& ctx, const CombineRows& args);

// The products. bf16: our own kernel on tensor cores, all experts in one launch, which reads their numbers of rows on the device; fp32:
// one call of cuBLAS for each expert, with the host's numbers.
const char* grouped_linear_refuses(const GroupedLinear& args);
void grouped_linear(OpContext& ctx, const GroupedLinear& args);
const char* grouped_linear_input_gradient_refuses(const GroupedLinearInputGradient& args);
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args);
const char* grouped_linear_weight_gradient_refuses(const GroupedLinearWeightGradient& args);
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args);

// cuBLAS's grouped product: bf16 throughout, everything aligned to 16 bytes, numbers of rows that the host knows.
const char* grouped_linear_cublas_refuses(const GroupedLinear& args);
void grouped_linear_cublas(OpContext& ctx, const GroupedLinear& args);
const char* grouped_linear_input_gradient_cublas_refuses(const GroupedLinearInputGradient& args);
void grouped_linear_input_gradient_cublas(OpContext& ctx, const GroupedLinearInputGradient& args);
}  // namespace cuda

}  // namespace lamina::ops
