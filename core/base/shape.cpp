#include "core/base/shape.h"

#include <fmt/ranges.h>

namespace lamina {

std::string Shape::to_string() const {
  return fmt::format("[{}]", fmt::join(begin(), end(), ", "));
}

}  // namespace lamina
