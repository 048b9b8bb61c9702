// Strides are in elements; x, y, delta, sum and dy are in `dtype`.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cuda {

struct RowMatrix {
  void* data = nullptr;  // none: not given
  int64_t stride = 0;
};

// Limit: bytes, those of x and y (and delta and sum). A row stays in its threads' registers between the statistics and the
// result; above 8,192 elements it is read again, from cache.
struct RmsNormForwardParams {
  DType dtype, weight_dtype;
  RowMatrix x, y, delta, sum;
  const void* weight;
  float* rstd;
  float eps;
  int64_t rows, dim;
};
void launch_rms_norm_forward(const RmsNormForwardParams& params, cudaStream_t stream);

// Limit: bytes, those of x and y.
struct RmsNormApplyParams {
  DType dtype, weight_dtype;
  RowMatrix x, y;
  const void* weight;
  const float* rstd;
  int64_t rows, dim;
};
void launch_rms_norm_apply(const RmsNormApplyParams& params, cudaStream_t stream);

// Limit: bytes, those of x, dy and dx. Each group of threads walks over rows, keeps its columns' share of dweight in registers
// and writes it once into `partial`; above 8,192 elements a second pass over x and dy sums dweight.
struct RmsNormBackwardParams {
  DType dtype, weight_dtype, dx_dtype;
  RowMatrix x, dy, dx;
  bool accumulate;
  const void* weight;
  const float* rstd;
  float* partial;  // [rms_norm_partials(rows, dim), dim]
  int64_t rows, dim;
};
int64_t rms_norm_partials(int64_t rows, int64_t dim);
void launch_rms_norm_backward(const RmsNormBackwardParams& params, cudaStream_t stream);

// sums[column] += the rows of partial [rows, dim], in an order that depends on `rows` only. Limit: bytes, those of partial.
void launch_add_column_sums(const float* partial, int64_t rows, int64_t dim, float* sums, cudaStream_t stream);

}  // namespace lamina::ops::cuda
