// Turns a CUDA status into an exception. Free of other headers, so that kernels' files can include it.
#pragma once

#include <cuda_runtime_api.h>

namespace lamina::cuda {

[[noreturn]] void fail(cudaError_t status, const char* what);

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(status, what);
}

}  // namespace lamina::cuda
