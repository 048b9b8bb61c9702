// The code files of an exported folder, compiled in from export/.
#pragma once

#include <string_view>

namespace lamina {

std::string_view modeling_code();

}  // namespace lamina
