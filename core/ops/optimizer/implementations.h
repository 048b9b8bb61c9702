// What core/ops/optimizer chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/optimizer/adamw.h"
#include "core/ops/optimizer/muon.h"
#include "core/ops/optimizer/newton_schulz.h"

namespace lamina::ops {

namespace ref {
void adamw(OpContext& ctx, const AdamW& args);
void muon_momentum(OpContext& ctx, const MuonMomentum& args);
void muon_apply(OpContext& ctx, const MuonApply& args);
void newton_schulz(OpContext& ctx, const NewtonSchulz& args);
}  // namespace ref

namespace cpu {
const char* adamw_refuses(const AdamW& args);
void adamw(OpContext& ctx, const AdamW& args);
const char* muon_momentum_refuses(const MuonMomentum& args);
void muon_momentum(OpContext& ctx, const MuonMomentum& args);
const char* muon_apply_refuses(const MuonApply& args);
void muon_apply(OpContext& ctx, const MuonApply& args);
const char* newton_schulz_refuses(const NewtonSchulz& args);
void newton_schulz(OpContext& ctx, const NewtonSchulz& args);
}  // namespace cpu

namespace cuda {
const char* adamw_refuses(const AdamW& args);
void adamw(OpContext& ctx, const AdamW& args);
const char* muon_momentum_refuses(const MuonMomentum& args);
void muon_momentum(OpContext& ctx, const MuonMomentum& args);

const char* muon_apply_refuses(const MuonApply& args);
void muon_apply(OpContext& ctx, const MuonApply& args);
const char* newton_schulz_refuses(const NewtonSchulz& args);
void newton_schulz(OpContext& ctx, const NewtonSchulz& args);
}  // namespace cuda

}  // namespace lamina::ops
