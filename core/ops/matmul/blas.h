// cuBLAS on a stream. For the host's side of operations only: it brings CUDA's headers with it.
#pragma once

#include <cublas_v2.h>

#include "core/ops/op.h"

namespace lamina::ops::cuda {

// Throws unless the call succeeded; `what` says what was called for.
void check(cublasStatus_t status, const char* what);

// The stream's own handle, made at the first call and kept as long as the stream. It has a workspace of its own, so that
// nothing is allocated later and the same call gives the same bits; sums are in fp32 throughout.
cublasHandle_t blas(Stream& stream);

// c = alpha a b + beta c, in row-major terms: a [M, K], b [K, N], c [M, N], each with one unit stride (c: the last), a and b
// in bf16 or fp32, c in that or in fp32. fp32 operands are multiplied in fp32, without TF32. No view may be empty. With
// `count` above 1 the same for that many matrices, whose elements lie so many apart.
struct Product {
  TensorView a, b, c;
  float alpha = 1, beta = 0;
  int64_t count = 1, a_step = 0, b_step = 0, c_step = 0;
};
// Why cuBLAS can't multiply these, or nullptr.
const char* product_refuses(const TensorView& a, const TensorView& b, const TensorView& c);
void multiply(Stream& stream, const Product& product);

}  // namespace lamina::ops::cuda
