// A sum over lanes that those who count experts' rows share.
#pragma once

#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {

// The sum over the lanes up to this one, itself included.
template <class T>
__device__ __forceinline__ T warp_scan(T x, int lane) {
#pragma unroll
  for (int offset = 1; offset < warp_size; offset *= 2) {
    const T before = __shfl_up_sync(full_warp, x, static_cast<unsigned>(offset));
    if (lane >= offset) x += before;
  }
  return x;
}

}  // namespace lamina::ops::cuda
