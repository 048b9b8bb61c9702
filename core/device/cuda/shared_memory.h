// How much shared memory a block may have. Free of other headers, so that kernels' files can include it.
#pragma once

#include <cstddef>

namespace lamina::cuda {

constexpr size_t default_shared_limit = 48 << 10;  // bytes that a block gets without asking

// Lets a kernel's blocks have as much as the current device gives one. Always the most, not what a launch needs: the limit belongs to
// the kernel, and ranks that are threads on one GPU would lower each other's.
void raise_shared_limit(const void* kernel);

}  // namespace lamina::cuda
