// What a program has asked of the emulated devices so far, for tests that hold it.
#pragma once

#include <cstdint>

namespace lamina_emulator {

struct Counts {
  uint64_t launches = 0;  // of kernels; those within cuBLAS are not known
  // In which the runtime held up the host until a stream, an event or a whole device was through: cuda*Synchronize, cudaFree,
  // cudaFreeHost, cudaMemcpy, copies of pageable memory, lazy loading. cudaEventQuery does not.
  uint64_t blocking_calls = 0;
};
Counts counts();

}  // namespace lamina_emulator
