// What core/ops/elementwise chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/elementwise/elementwise.h"

namespace lamina::ops {

namespace ref {
void add(OpContext& ctx, const Add& args);
void cast(OpContext& ctx, const Cast& args);
void sum_squares(OpContext& ctx, const SumSquares& args);
void fill(OpContext& ctx, const Fill& args);
void scale(OpContext& ctx, const Scale& args);
}  // namespace ref

namespace cpu {
const char* add_refuses(const Add& args);
void add(OpContext& ctx, const Add& args);
const char* cast_refuses(const Cast& args);
void cast(OpContext& ctx, const Cast& args);
const char* sum_squares_refuses(const SumSquares& args);
void sum_squares(OpContext& ctx, const SumSquares& args);
const char* fill_refuses(const Fill& args);
void fill(OpContext& ctx, const Fill& args);
}  // namespace cpu

namespace cuda {
// All of them are limited by the bytes that they read and write.
const char* add_refuses(const Add& args);
void add(OpContext& ctx, const Add& args);

const char* cast_refuses(const Cast& args);
void cast(OpContext& ctx, const Cast& args);

// The bits of the CPU's sum: the same order, core/ops/sum_order.h. The sums of the blocks are added on the host.
const char* sum_squares_refuses(const SumSquares& args);
void sum_squares(OpContext& ctx, const SumSquares& args);

const char* fill_refuses(const Fill& args);
void fill(OpContext& ctx, const Fill& args);

const char* scale_refuses(const Scale& args);
void scale(OpContext& ctx, const Scale& args);
}  // namespace cuda

}  // namespace lamina::ops
