#include "core/device/cpu/waiting.h"

#include <unistd.h>

#include <array>
#include <climits>
#include <cstdlib>

namespace lamina::cpu {

void shorten_spins(char** argv) {
  // Each spin is a PAUSE: 25 ns on Zen 4, 40 on Intel's. 4,000 cost a quiet step of 2.5 ms under 1 %, 2,000 cost it 3 %.
  constexpr const char* count = "GOMP_SPINCOUNT";
  if (std::getenv(count) || std::getenv("OMP_WAIT_POLICY")) return;
  // By its path, not by /proc/self/exe, so that ps, top and pkill know it by its name.
  std::array<char, PATH_MAX> path{};
  if (::readlink("/proc/self/exe", path.data(), path.size() - 1) <= 0) return;
  ::setenv(count, "4000", 0);
  ::execv(path.data(), argv);
}

}  // namespace lamina::cpu
