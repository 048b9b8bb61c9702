// The devices there are.
#pragma once

#include <cstddef>

#include "cuda_runtime_api.h"

namespace lamina_emulator {

constexpr int max_devices = 16;
constexpr size_t default_shared_per_block = 48 << 10, max_shared_per_block = 227 << 10;
constexpr unsigned max_threads_per_block = 1024;

int num_devices();
int current_device();
// The error with which every call must return: there is no device, or work on the current one has failed.
cudaError_t usable();
// What launches of a kernel may ask for: as cudaFuncSetAttribute was told last, in whichever thread.
size_t shared_limit(int device, const void* kernel);

}  // namespace lamina_emulator
