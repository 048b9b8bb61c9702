// Errors as the runtime keeps them: those of a call, per thread, until asked for; those of work on a device, for ever, with a story.
#pragma once

#include <string>

#include "cuda_runtime_api.h"

namespace lamina_emulator {

cudaError_t remember(cudaError_t error);  // returns it
void set_device_error(int device, cudaError_t error,
                      const std::string& story);  // the first one stays; also told on stderr
cudaError_t device_error(int device);
void forget_device_errors();

}  // namespace lamina_emulator
