#include "core/device/cuda/shared_memory.h"

#include <cuda_runtime_api.h>

#include <set>
#include <utility>

#include "core/device/cuda/check.h"

namespace lamina::cuda {

void raise_shared_limit(const void* kernel) {
  thread_local std::set<std::pair<int, const void*>> raised;  // again in another thread changes nothing
  int device = 0;
  check(cudaGetDevice(&device), "the current device");
  if (raised.contains({device, kernel})) return;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "a kernel's attributes");
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "a device's shared memory");
  const int dynamic = most - static_cast<int>(attributes.sharedSizeBytes);  // the rest are __shared__ variables
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic),
        "shared memory of a kernel");
  raised.insert({device, kernel});
}

}  // namespace lamina::cuda
