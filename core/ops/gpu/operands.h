// What the host's side of CUDA implementations shares: refusals and plain parameters from views.
#pragma once

#include <cuda_runtime_api.h>

#include <initializer_list>

#include "core/ops/op.h"

namespace lamina::ops::cuda {

inline const char* refuses_fp64(std::initializer_list<const TensorView*> operands) {
  for (const TensorView* operand : operands)
    if (operand->dtype == DType::f64) return "fp64 runs on the CPU";
  return nullptr;
}

inline cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

}  // namespace lamina::ops::cuda
