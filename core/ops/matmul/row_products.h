// y = x w^T for few rows x: bound by reading w, once for all of them. A row's sums are added in the same order whatever the number of rows
// and threads.
#pragma once

#include "core/ops/matmul/matmul.h"

namespace lamina::ops::cpu {

constexpr int64_t most_rows = 16;

// Whether the product is such a one, of operands that lie along the sum.
bool is_row_product(const Matmul& args);
void row_product(OpContext& ctx, const Matmul& args);

}  // namespace lamina::ops::cpu
