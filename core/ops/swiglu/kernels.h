// Strides are in elements. A null pointer is an operand that was not given.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cuda {

// Limit: bytes, 3 width elements per token.
struct SwigluForwardParams {
  DType dtype;
  const void* gate_up;
  void* y;
  const float* weight;
  int64_t gate_up_stride, y_stride;
  int64_t tokens, width;
};
void launch_swiglu_forward(const SwigluForwardParams& params, cudaStream_t stream);

// Limit: bytes, 5 width elements per token, 6 with y. With dweight a block has a whole row.
struct SwigluBackwardParams {
  DType dtype;
  const void *gate_up, *dy;
  void *dgate_up, *y;
  const float* weight;
  float* dweight;
  int64_t gate_up_stride, dy_stride, dgate_up_stride, y_stride;
  int64_t tokens, width;
};
void launch_swiglu_backward(const SwigluBackwardParams& params, cudaStream_t stream);

}  // namespace lamina::ops::cuda
