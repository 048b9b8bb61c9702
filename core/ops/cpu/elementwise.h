#pragma once

#include "core/ops/elementwise.h"

namespace lamina::ops::cpu {

const char* add_refuses(const Add& args);
void add(OpContext& ctx, const Add& args);
const char* cast_refuses(const Cast& args);
void cast(OpContext& ctx, const Cast& args);
const char* sum_squares_refuses(const SumSquares& args);
void sum_squares(OpContext& ctx, const SumSquares& args);
const char* fill_refuses(const Fill& args);
void fill(OpContext& ctx, const Fill& args);

}  // namespace lamina::ops::cpu
