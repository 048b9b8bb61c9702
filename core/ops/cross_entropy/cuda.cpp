#include "core/ops/cross_entropy/implementations.h"

#include "core/ops/cross_entropy/kernels.h"
#include "core/ops/gpu/operands.h"

namespace lamina::ops::cuda {

const char* softmax_cross_entropy_refuses(const SoftmaxCrossEntropy& args) {
  return refuses_fp64({&args.logits});
}

void softmax_cross_entropy(OpContext& ctx, const SoftmaxCrossEntropy& args) {
  launch_softmax_cross_entropy(
      {static_cast<const float*>(args.logits.data), args.targets.as<int32_t>(), args.token_loss.as<float>(),
       args.dlogits.data, args.dlogits ? args.dlogits.dtype : DType::f32, static_cast<float>(args.grad_scale),
       args.logits.size(0), args.logits.size(1)},
      stream_of(ctx));
}

}  // namespace lamina::ops::cuda
