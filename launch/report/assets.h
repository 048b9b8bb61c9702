// The page's styles and scripts, compiled in from assets/ (embed_assets.cmake).
#pragma once

#include <string_view>

namespace lamina::report {

std::string_view style_sheet();
std::string_view scripts();  // all files, in the order in which they build on each other

}  // namespace lamina::report
