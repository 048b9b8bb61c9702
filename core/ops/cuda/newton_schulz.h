#pragma once

#include "core/ops/newton_schulz.h"

namespace lamina::ops::cuda {

const char* newton_schulz_refuses(const NewtonSchulz& args);
void newton_schulz(OpContext& ctx, const NewtonSchulz& args);

}  // namespace lamina::ops::cuda
