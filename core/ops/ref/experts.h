#pragma once

#include "core/ops/experts.h"

namespace lamina::ops::ref {

void group_rows(OpContext& ctx, const GroupRows& args);
void gather_rows(OpContext& ctx, const GatherRows& args);
void combine_rows(OpContext& ctx, const CombineRows& args);
void grouped_linear(OpContext& ctx, const GroupedLinear& args);
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args);
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args);

}  // namespace lamina::ops::ref
