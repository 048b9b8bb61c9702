#pragma once

#include "core/ops/experts.h"

namespace lamina::ops::cpu {

const char* refuses(const GatherRows& args);
void gather_rows(OpContext& ctx, const GatherRows& args);
const char* refuses(const CombineRows& args);
void combine_rows(OpContext& ctx, const CombineRows& args);

const char* refuses(const GroupedLinear& args);
void grouped_linear(OpContext& ctx, const GroupedLinear& args);
const char* refuses(const GroupedLinearInputGradient& args);
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args);
const char* refuses(const GroupedLinearWeightGradient& args);
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args);

}  // namespace lamina::ops::cpu
