#include "core/ops/optimizer/implementations.h"

#include "core/ops/gpu/operands.h"
#include "core/ops/optimizer/adamw_scalars.h"
#include "core/ops/optimizer/kernels.h"

namespace lamina::ops::cuda {

const char* adamw_refuses(const AdamW& args) {
  return refuses_fp64({&args.master});
}

void adamw(OpContext& ctx, const AdamW& args) {
  if (args.master.size(0) == 0) return;
  const AdamWScalars<float> s(args);
  launch_adamw({args.master.as<float>(),
                args.m.as<float>(),
                args.v.as<float>(),
                args.grad.as<float>(),
                {args.param.data, args.param.dtype},
                args.master.size(0),
                s.beta1,
                s.one_minus_beta1,
                s.beta2,
                s.one_minus_beta2,
                s.grad_scale,
                s.decay,
                s.step_size,
                s.inverse_correction2,
                s.eps},
               stream_of(ctx));
}

}  // namespace lamina::ops::cuda
