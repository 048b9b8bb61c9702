#pragma once

#include "core/ops/newton_schulz.h"

namespace lamina::ops::cpu {

const char* refuses(const NewtonSchulz& args);
void newton_schulz(OpContext& ctx, const NewtonSchulz& args);

}  // namespace lamina::ops::cpu
