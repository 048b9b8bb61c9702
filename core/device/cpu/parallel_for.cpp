#include "core/device/cpu/parallel_for.h"

namespace lamina::cpu {

void set_num_threads(int num_threads) {
  omp_set_num_threads(std::max(1, num_threads));
}
int num_threads() {
  return omp_get_max_threads();
}

}  // namespace lamina::cpu
