#include "core/base/error.h"

#include <string_view>

namespace lamina {

void check_failed(const char* file, int line, const char* expression, const std::string& message) {
  std::string_view path = file;
  // The path from the project's root is enough, and the same on every machine.
  for (std::string_view room : {"/core/", "/configs/", "/parallel/", "/model/", "/data/", "/trainer/", "/launch/"}) {
    if (const size_t at = path.rfind(room); at != std::string_view::npos) {
      path = path.substr(at + 1);
      break;
    }
  }
  throw InternalError(fmt::format("{}:{}: check failed: {}{}{} (this is a bug in Lamina)", path, line, expression,
                                  message.empty() ? "" : ": ", message));
}

}  // namespace lamina
