#include "core/ops/rms_norm/implementations.h"

#include "core/ops/gpu/operands.h"
#include "core/ops/rms_norm/kernels.h"

namespace lamina::ops::cuda {
namespace {

RowMatrix rows_of(const TensorView& matrix) {
  if (matrix.empty()) return {};
  return {matrix.data, matrix.stride(0)};
}

}  // namespace

const char* rms_norm_forward_refuses(const RmsNormForward& args) {
  return refuses_fp64({&args.x});
}
void rms_norm_forward(OpContext& ctx, const RmsNormForward& args) {
  launch_rms_norm_forward({args.x.dtype, args.weight.dtype, rows_of(args.x), rows_of(args.y), rows_of(args.delta),
                           rows_of(args.sum), args.weight.data, static_cast<float*>(args.rstd.data),
                           static_cast<float>(args.eps), args.x.size(0), args.x.size(1)},
                          stream_of(ctx));
}

const char* rms_norm_backward_refuses(const RmsNormBackward& args) {
  return refuses_fp64({&args.x});
}
void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args) {
  const int64_t rows = args.x.size(0), dim = args.x.size(1);
  if (rows == 0 || dim == 0) return;
  const int64_t num_partials = rms_norm_partials(rows, dim);
  auto* const partial = ctx.scratch.take(DType::f32, {num_partials, dim}).as<float>();
  launch_rms_norm_backward(
      {args.x.dtype, args.weight.dtype, args.dx.dtype, rows_of(args.x), rows_of(args.dy), rows_of(args.dx),
       args.dx_mode == GradMode::accumulate, args.weight.data, args.rstd.as<float>(), partial, rows, dim},
      stream_of(ctx));
  launch_add_column_sums(partial, num_partials, dim, args.dweight.as<float>(), stream_of(ctx));
}

const char* rms_norm_apply_refuses(const RmsNormApply& args) {
  return refuses_fp64({&args.x});
}
void rms_norm_apply(OpContext& ctx, const RmsNormApply& args) {
  launch_rms_norm_apply({args.x.dtype, args.weight.dtype, rows_of(args.x), rows_of(args.y), args.weight.data,
                         static_cast<const float*>(args.rstd.data), args.x.size(0), args.x.size(1)},
                        stream_of(ctx));
}

}  // namespace lamina::ops::cuda
