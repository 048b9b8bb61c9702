// The files of code that stand in an exported folder, compiled in from export/.
#pragma once

#include <string_view>

namespace lamina {

std::string_view modeling_code();

}  // namespace lamina
