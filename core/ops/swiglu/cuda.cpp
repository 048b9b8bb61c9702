#include "core/ops/swiglu/implementations.h"

#include "core/ops/gpu/operands.h"
#include "core/ops/swiglu/kernels.h"

namespace lamina::ops::cuda {
namespace {

int64_t row_stride(const TensorView& matrix) {
  return matrix.empty() ? 0 : matrix.stride(0);
}

}  // namespace

const char* swiglu_forward_refuses(const SwigluForward& args) {
  return refuses_fp64({&args.y});
}
void swiglu_forward(OpContext& ctx, const SwigluForward& args) {
  launch_swiglu_forward({args.y.dtype, args.gate_up.data, args.y.data, static_cast<const float*>(args.weight.data),
                         row_stride(args.gate_up), row_stride(args.y), args.y.size(0), args.y.size(1)},
                        stream_of(ctx));
}

const char* swiglu_backward_refuses(const SwigluBackward& args) {
  return refuses_fp64({&args.dy});
}
void swiglu_backward(OpContext& ctx, const SwigluBackward& args) {
  launch_swiglu_backward(
      {args.dy.dtype, args.gate_up.data, args.dy.data, args.dgate_up.data, args.y.data,
       static_cast<const float*>(args.weight.data), static_cast<float*>(args.dweight.data), row_stride(args.gate_up),
       row_stride(args.dy), row_stride(args.dgate_up), row_stride(args.y), args.dy.size(0), args.dy.size(1)},
      stream_of(ctx));
}

}  // namespace lamina::ops::cuda
