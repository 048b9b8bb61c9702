#pragma once

#include "core/ops/newton_schulz.h"

namespace lamina::ops::ref {

void newton_schulz(OpContext& ctx, const NewtonSchulz& args);

}  // namespace lamina::ops::ref
