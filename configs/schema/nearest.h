// "Did you mean": the name that is nearest by edit distance.
#pragma once

#include <optional>
#include <span>
#include <string>

namespace lamina {

// Nothing when no name is near enough to be what the user meant.
std::optional<std::string> nearest_name(const std::string& found, std::span<const std::string> names);

}  // namespace lamina
