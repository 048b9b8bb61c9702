// Matrices' norms and their division by them. The products are cuBLAS', and its sums carry the polynomial's other terms.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cuda {

struct NormaliseParams {
  const float* x;  // [count, size]
  float* out;      // [count, size], may be x: x / (|x| + 1e-7)
  void* operand;   // [count, size]: the same in operand_dtype
  DType operand_dtype;
  float* partial;  // [count, normalise_partials(size)]
  int64_t count, size;
};
int64_t normalise_partials(int64_t size);
// Limit: bytes, those of x three times and of the operand. Each matrix' sum is taken in an order that depends on its size only.
void launch_normalise(const NormaliseParams& params, cudaStream_t stream);

}  // namespace lamina::ops::cuda
