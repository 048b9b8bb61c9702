// Numbers as the console shows them.
#pragma once

#include <string>

namespace lamina {

std::string duration_text(double seconds);  // "12s", "3m05s", "2h07m"
std::string count_text(double count);       // "950", "12.5k", "1.20M", "3.00B"

}  // namespace lamina
