// The reference page, from the same declarations that the decoder reads.
#pragma once

#include <string>
#include <vector>

namespace lamina {

std::string configuration_reference();          // Markdown: docs/configuration.md
std::vector<std::string> configuration_keys();  // "run.name", .., "data.train[].path", ..

}  // namespace lamina
