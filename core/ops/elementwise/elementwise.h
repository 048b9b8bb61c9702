// Small passes over flat data.
#pragma once

#include <span>

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

// Sums of squares in double, each in a fixed order that depends on the count only. On a GPU the host waits once for all.
struct SumSquares {
  std::span<const TensorView> xs;  // contiguous
  std::span<double> results;       // [xs]
};
void sum_squares(OpContext& ctx, const SumSquares& args);
inline double sum_squares(OpContext& ctx, const TensorView& x) {
  double result = 0;
  sum_squares(ctx, {{&x, 1}, {&result, 1}});
  return result;
}

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
