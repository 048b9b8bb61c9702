#include "core/ops/optimizer/implementations.h"

#include "core/ops/gpu/operands.h"
#include "core/ops/optimizer/kernels.h"

namespace lamina::ops::cuda {

const char* muon_momentum_refuses(const MuonMomentum& args) {
  return refuses_fp64({&args.grad});
}
void muon_momentum(OpContext& ctx, const MuonMomentum& args) {
  launch_muon_momentum({args.grad.as<float>(), args.buffer.as<float>(), args.out.as<float>(), args.grad.size(0),
                        static_cast<float>(args.momentum), static_cast<float>(args.grad_scale)},
                       stream_of(ctx));
}

const char* muon_apply_refuses(const MuonApply& args) {
  return refuses_fp64({&args.master});
}
void muon_apply(OpContext& ctx, const MuonApply& args) {
  launch_muon_apply({args.update.as<float>(),
                     args.master.as<float>(),
                     {args.param.data, args.param.dtype},
                     args.master.size(0),
                     static_cast<float>(1.0 - args.lr * args.weight_decay),
                     static_cast<float>(args.lr * args.update_scale)},
                    stream_of(ctx));
}

}  // namespace lamina::ops::cuda
