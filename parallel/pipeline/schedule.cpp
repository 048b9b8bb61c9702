#include "parallel/pipeline/schedule.h"

#include "core/base/error.h"

namespace lamina::pipeline {

std::string to_string(const Action& action) {
  static constexpr char letters[] = {'F', 'B', 'I', 'W'};
  return fmt::format("{}{}{}", action.chunk, letters[static_cast<size_t>(action.kind)], action.microbatch);
}

}  // namespace lamina::pipeline
