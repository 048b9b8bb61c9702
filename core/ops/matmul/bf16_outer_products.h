// Sums of outer products of bf16 rows, added to an fp32 matrix: the weight gradient of few rows, where moving the matrix
// through memory takes as long as the arithmetic. The kernel fetches the next elements while it multiplies, which a product into
// scratch and an addition after it can't.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cpu {

struct Bf16OuterProducts {
  const bf16 *a, *b;  // [depth, rows], [depth, columns]
  float* c;           // [rows, columns]: c += a^T b
  int64_t depth, rows, columns;
  int64_t a_leading, b_leading, c_leading;
};

// The processor multiplies pairs of bf16, and the instruction set in use is the one that does.
bool has_bf16_outer_products();
int64_t scratch_bytes(const Bf16OuterProducts& args);
void add_outer_products(const Bf16OuterProducts& args, char* scratch);

}  // namespace lamina::ops::cpu
