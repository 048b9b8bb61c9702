#include "settings.h"

#include <cstdio>
#include <cstdlib>

namespace lamina_emulator {

int64_t setting(const char* name, int64_t otherwise) {
  const char* const text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  if (*end != '\0') {
    std::fprintf(stderr, "CUDA emulator: %s=%s is not a number\n", name, text);
    std::abort();
  }
  return value;
}

}  // namespace lamina_emulator
