// What kernels are written with. Files that end in .cu include this header, their own parameters and nothing of Lamina beyond
// core/base/dtype.h: nvcc can't read every header of the host's libraries. They are compiled by nvcc, or by the host's compiler
// against an emulator of the device (tests/cuda_emulator), in which the same kernels are tested where there is no GPU. So:
//   - launch with cuda::launch(), never with <<<>>>;
//   - dynamic shared memory through LAMINA_DYNAMIC_SHARED;
//   - tensor cores and asynchronous copies through the functions below, never through inline assembly elsewhere.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/device/cuda/check.h"
#include "core/device/cuda/shared_memory.h"

#ifdef LAMINA_CUDA_EMULATED
#include <lamina_emulated_kernel.h>
#else
#include "core/device/cuda/ptx.h"
#endif
