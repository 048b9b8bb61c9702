#pragma once

#include "core/ops/muon.h"

namespace lamina::ops::cuda {

const char* muon_momentum_refuses(const MuonMomentum& args);
void muon_momentum(OpContext& ctx, const MuonMomentum& args);

const char* muon_apply_refuses(const MuonApply& args);
void muon_apply(OpContext& ctx, const MuonApply& args);

}  // namespace lamina::ops::cuda
