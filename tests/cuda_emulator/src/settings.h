// What the environment asks of the emulator.
#pragma once

#include <cstdint>

namespace lamina_emulator {

int64_t setting(const char* name, int64_t otherwise);  // ends the process when it is not a number

}  // namespace lamina_emulator
