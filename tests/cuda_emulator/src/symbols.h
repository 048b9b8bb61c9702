// What the program's own table of symbols tells of kernels.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace lamina_emulator {

std::string kernel_name(const void* kernel);  // "kernel NAME", or "a kernel" when the program has no symbols

// The __shared__ variables of a kernel itself, for this thread: none when the program has no symbols.
struct SharedVariable {
  std::byte* data;
  size_t num_bytes;
};
std::vector<SharedVariable> shared_variables(const void* kernel);

}  // namespace lamina_emulator
