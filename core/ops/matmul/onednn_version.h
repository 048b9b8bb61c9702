// The oneDNN that runs.
#pragma once

#include <string>

namespace lamina::ops {

std::string onednn_version();  // "2.6.3"

}  // namespace lamina::ops
