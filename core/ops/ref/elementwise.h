#pragma once

#include "core/ops/elementwise.h"

namespace lamina::ops::ref {

void add(OpContext& ctx, const Add& args);
void cast(OpContext& ctx, const Cast& args);
void sum_squares(OpContext& ctx, const SumSquares& args);
void fill(OpContext& ctx, const Fill& args);
void scale(OpContext& ctx, const Scale& args);

}  // namespace lamina::ops::ref
