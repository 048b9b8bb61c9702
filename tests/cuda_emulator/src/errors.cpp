#include "errors.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>

#include "device.h"

namespace lamina_emulator {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

struct Kept {
  std::atomic<cudaError_t> error = cudaSuccess;
};
struct Errors {
  std::array<Kept, max_devices> devices;
  std::mutex mutex;
  std::map<cudaError_t, const std::string*> stories;  // never freed: callers hold pointers into them
};
Errors& errors() {
  static Errors& all = *new Errors;
  return all;
}

struct Description {
  cudaError_t error;
  const char* name;
  const char* text;
};
#define LAMINA_EMULATOR_ERROR(name, text) \
  { name, #name, text }
constexpr Description descriptions[] = {
    LAMINA_EMULATOR_ERROR(cudaSuccess, "no error"),
    LAMINA_EMULATOR_ERROR(cudaErrorInvalidValue, "invalid argument"),
    LAMINA_EMULATOR_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    LAMINA_EMULATOR_ERROR(cudaErrorInitializationError, "initialization error"),
    LAMINA_EMULATOR_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    LAMINA_EMULATOR_ERROR(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    LAMINA_EMULATOR_ERROR(cudaErrorInvalidDevicePointer, "invalid device pointer"),
    LAMINA_EMULATOR_ERROR(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    LAMINA_EMULATOR_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    LAMINA_EMULATOR_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    LAMINA_EMULATOR_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    LAMINA_EMULATOR_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    LAMINA_EMULATOR_ERROR(cudaErrorNotReady, "device not ready"),
    LAMINA_EMULATOR_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    LAMINA_EMULATOR_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    LAMINA_EMULATOR_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    LAMINA_EMULATOR_ERROR(cudaErrorNotSupported, "operation not supported"),
    LAMINA_EMULATOR_ERROR(cudaErrorUnknown, "unknown error"),
};
#undef LAMINA_EMULATOR_ERROR

const Description* find(cudaError_t error) {
  for (const Description& description : descriptions)
    if (description.error == error) return &description;
  return nullptr;
}

}  // namespace

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

void set_device_error(int device, cudaError_t error, const std::string& story) {
  Errors& all = errors();
  const std::lock_guard lock(all.mutex);
  if (all.devices[static_cast<size_t>(device)].error != cudaSuccess) return;
  all.stories[error] = new std::string(story);
  all.devices[static_cast<size_t>(device)].error = error;
  std::fprintf(stderr, "CUDA emulator: %s\n", story.c_str());
}

cudaError_t device_error(int device) {
  return errors().devices[static_cast<size_t>(device)].error;
}

void forget_device_errors() {
  Errors& all = errors();
  const std::lock_guard lock(all.mutex);
  for (Kept& kept : all.devices) kept.error = cudaSuccess;
  all.stories.clear();
  last_error = cudaSuccess;
}

}  // namespace lamina_emulator

using namespace lamina_emulator;

const char* cudaGetErrorName(cudaError_t error) {
  const Description* const known = find(error);
  return known != nullptr ? known->name : "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  {
    Errors& all = errors();
    const std::lock_guard lock(all.mutex);
    if (const auto story = all.stories.find(error); story != all.stories.end()) return story->second->c_str();
  }
  const Description* const known = find(error);
  return known != nullptr ? known->text : "unrecognized error code";
}

cudaError_t cudaPeekAtLastError() {
  const cudaError_t kept = num_devices() > 0 ? device_error(current_device()) : cudaSuccess;
  return kept != cudaSuccess ? kept : last_error;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}
