// c = alpha op(a) op(b) + beta c, column-major as in BLAS. Sums in fp32.
#pragma once

#include <cstdint>

namespace lamina_emulator {

struct Gemm {
  bool transpose_a = false, transpose_b = false;
  int m = 0, n = 0, k = 0;
  float alpha = 1, beta = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  int64_t lda = 0, ldb = 0, ldc = 0;
  bool bf16_in = false, bf16_out = false;
  bool tf32 = false;  // operands are rounded to it
};
void multiply(const Gemm& gemm);

}  // namespace lamina_emulator
