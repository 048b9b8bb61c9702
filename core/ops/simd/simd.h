// A kernel file defines HWY_TARGET_INCLUDE as its own path, then includes this: the file is compiled once per instruction
// set (AVX-512, AVX2, a portable baseline), and the best one that the processor has is chosen at run time.
#pragma once

#include "core/ops/simd/highway_targets.h"
// Obeys the above.
#include <hwy/foreach_target.h>
