// What wrote a checkpoint.
#pragma once

#include <string_view>

namespace lamina {

inline constexpr std::string_view program_version = "0.1.0";

}  // namespace lamina
