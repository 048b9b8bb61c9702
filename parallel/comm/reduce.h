// The arithmetic of reductions, independent of how the bytes arrived.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "parallel/comm/communicator.h"

namespace lamina::comm {

// out[i] = sources[0][i] op sources[1][i] op ..., from left to right; floating sums are taken in accumulation_dtype() and
// rounded once, int32 sums wrap around. A NaN in any source makes max and min NaN. out may be one of the sources.
void reduce_in_order(ReduceOp op, DType dtype, std::span<const void* const> sources, void* out, int64_t count);

}  // namespace lamina::comm
