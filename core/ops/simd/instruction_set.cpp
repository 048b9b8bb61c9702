#include "core/ops/simd/instruction_set.h"

#include "core/ops/simd/highway_targets.h"
// Obeys the above.
#include <hwy/highway.h>

namespace lamina::ops::cpu {

void limit_instruction_set(InstructionSet limit) {
  hwy::SetSupportedTargetsForTest(0);  // what the processor has
  if (limit == InstructionSet::best) return;
  // Better sets have lower bits.
  const int64_t worst_allowed = limit == InstructionSet::avx2 ? int64_t{HWY_AVX2} : int64_t{HWY_STATIC_TARGET};
  hwy::SetSupportedTargetsForTest(hwy::SupportedTargets() & ~(worst_allowed - 1));
}

const char* instruction_set_name() {
  const int64_t available = hwy::SupportedTargets() & HWY_TARGETS;
  return hwy::TargetName(available & -available);
}

}  // namespace lamina::ops::cpu
