#pragma once

#include "core/ops/muon.h"

namespace lamina::ops::ref {

void muon_momentum(OpContext& ctx, const MuonMomentum& args);
void muon_apply(OpContext& ctx, const MuonApply& args);

}  // namespace lamina::ops::ref
