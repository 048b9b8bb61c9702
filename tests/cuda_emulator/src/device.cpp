#include "device.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "errors.h"
#include "memory.h"
#include "settings.h"
#include "stream.h"

namespace lamina_emulator {
namespace {

thread_local int device_of_thread = 0;

struct SharedLimits {
  std::mutex mutex;
  std::map<std::pair<int, const void*>, size_t> of_kernels;
};
SharedLimits& shared_limits() {
  static SharedLimits& all = *new SharedLimits;
  return all;
}

}  // namespace

int num_devices() {
  static const int count = static_cast<int>(std::clamp<int64_t>(setting("LAMINA_EMULATOR_DEVICES", 1), 0, max_devices));
  return count;
}

int current_device() {
  return device_of_thread;
}

cudaError_t usable() {
  if (num_devices() == 0) return cudaErrorNoDevice;
  return device_error(current_device());
}

size_t shared_limit(int device, const void* kernel) {
  const std::lock_guard lock(shared_limits().mutex);
  const auto found = shared_limits().of_kernels.find({device, kernel});
  return found != shared_limits().of_kernels.end() ? found->second : default_shared_per_block;
}

}  // namespace lamina_emulator

using namespace lamina_emulator;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = num_devices();
  return num_devices() > 0 ? cudaSuccess : remember(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  if (num_devices() == 0) return remember(cudaErrorNoDevice);
  if (device < 0 || device >= num_devices()) return remember(cudaErrorInvalidDevice);
  device_of_thread = device;
  return remember(device_error(device));
}

cudaError_t cudaGetDevice(int* device) {
  if (num_devices() == 0) return remember(cudaErrorNoDevice);
  *device = device_of_thread;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* prop, int device) {
  if (device < 0 || device >= num_devices()) return remember(cudaErrorInvalidDevice);
  *prop = {};
  std::strcpy(prop->name, "emulated device");
  prop->totalGlobalMem = memory().capacity();
  prop->sharedMemPerBlock = default_shared_per_block;
  prop->regsPerBlock = 65536;
  prop->warpSize = 32;
  prop->maxThreadsPerBlock = max_threads_per_block;
  prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024;
  prop->maxThreadsDim[2] = 64;
  prop->maxGridSize[0] = 0x7fffffff;
  prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
  prop->major = 9;
  prop->minor = 0;
  prop->multiProcessorCount = static_cast<int>(setting("LAMINA_EMULATOR_MULTIPROCESSORS", 132));
  prop->pciBusID = 0x1b + device;
  prop->l2CacheSize = 50 << 20;
  prop->maxThreadsPerMultiProcessor = 2048;
  prop->sharedMemPerMultiprocessor = 228 << 10;
  prop->regsPerMultiprocessor = 65536;
  prop->sharedMemPerBlockOptin = max_shared_per_block;
  prop->reservedSharedMemPerBlock = 1024;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attr, int device) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, device);
  if (status != cudaSuccess) return status;
  switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = properties.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(properties.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = properties.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = properties.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = properties.l2CacheSize;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = properties.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = properties.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = properties.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(properties.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(properties.sharedMemPerBlockOptin);
      break;
    default:
      return remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* pciBusId, int len, int device) {
  if (device < 0 || device >= num_devices()) return remember(cudaErrorInvalidDevice);
  if (len < 13) return remember(cudaErrorInvalidValue);
  std::snprintf(pciBusId, static_cast<size_t>(len), "0000:%02X:00.0", 0x1b + device);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* leastPriority, int* greatestPriority) {
  *leastPriority = 0;
  *greatestPriority = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  if (num_devices() == 0) return remember(cudaErrorNoDevice);
  wait_for_all_streams(current_device());
  return remember(device_error(current_device()));
}

cudaError_t cudaDeviceReset() {
  for (int device = 0; device < num_devices(); ++device) wait_for_all_streams(device);
  forget_device_errors();
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* runtimeVersion) {
  *runtimeVersion = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* driverVersion) {
  *driverVersion = num_devices() > 0 ? CUDART_VERSION : 0;  // 0: no driver
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* func, cudaFuncAttribute attr, int value) {
  if (func == nullptr) return remember(cudaErrorInvalidDeviceFunction);
  if (value < 0) return remember(cudaErrorInvalidValue);
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (static_cast<size_t>(value) > max_shared_per_block) return remember(cudaErrorInvalidValue);
  const std::lock_guard lock(shared_limits().mutex);
  shared_limits().of_kernels[{current_device(), func}] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attr, const void* func) {
  if (attr == nullptr) return remember(cudaErrorInvalidValue);
  if (func == nullptr) return remember(cudaErrorInvalidDeviceFunction);
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  *attr = {0, static_cast<int>(shared_limit(current_device(), func))};
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* numBlocks, const void* func, int blockSize,
                                                          size_t dynamicSMemSize) {
  if (func == nullptr) return remember(cudaErrorInvalidDeviceFunction);
  const bool fits =
      blockSize > 0 && blockSize <= static_cast<int>(max_threads_per_block) && dynamicSMemSize <= max_shared_per_block;
  *numBlocks = fits ? 2 : 0;
  return remember(usable());
}
