// Small passes over flat data.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

// y = a + b, each rounded once; dtypes may differ (sums in acc of the widest). y may be a or b. Contiguous, same count.
struct Add {
  TensorView a, b, y;
};
void add(OpContext& ctx, const Add& args);

// y = x with a change of dtype. Contiguous, same count.
struct Cast {
  TensorView x, y;
};
void cast(OpContext& ctx, const Cast& args);

// Sum of squares in double, in a fixed order that depends on the count only. Contiguous.
struct SumSquares {
  TensorView x;
  double* result;
};
void sum_squares(OpContext& ctx, const SumSquares& args);

struct Fill {
  TensorView x;
  double value;
};  // contiguous
void fill(OpContext& ctx, const Fill& args);

struct Scale {  // x = factor x; contiguous
  TensorView x;
  double factor;
};
void scale(OpContext& ctx, const Scale& args);

}  // namespace lamina::ops
