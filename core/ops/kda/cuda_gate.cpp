// From views to the parameters of the kernels around Kimi Delta Attention.
#include "core/ops/kda/implementations.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <initializer_list>

#include "core/ops/kda/gate_kernels.h"

namespace lamina::ops::cuda {
namespace {

cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

const char* refuses(const TensorView& v) {
  if (v.dtype == DType::f64) return "fp64 runs on the CPU";
  if (v.size(2) > kda_max_head_dim) return "heads of more than 1024 elements do not fit into a warp's registers";
  if (v.size(1) > kda_max_heads) return "more than 65535 heads";
  return nullptr;
}

HeadRows rows_of(const TensorView& v) {
  if (!v) return {};
  return {v.data, v.stride(0), v.stride(1)};
}
float* floats(const TensorView& v) {
  return static_cast<float*>(v.data);
}

// Whether four elements of the rows that are given can be moved at a time.
bool fits_vectors(const TensorView& v) {
  if (!v) return true;
  const auto bytes = static_cast<uintptr_t>(4 * size_of(v.dtype));
  return v.size(2) % 4 == 0 && reinterpret_cast<uintptr_t>(v.data) % bytes == 0 &&
         (v.size(0) <= 1 || v.stride(0) % 4 == 0) && (v.size(1) <= 1 || v.stride(1) % 4 == 0);
}
bool fits_vector(const TensorView& v) {  // contiguous
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0;
}

HeadShape shape_of(const TensorView& v, std::initializer_list<TensorView> rows,
                   std::initializer_list<TensorView> vectors) {
  HeadShape shape{v.size(0), static_cast<int>(v.size(1)), static_cast<int>(v.size(2)), v.dtype == DType::bf16, true};
  for (const TensorView& each : rows) shape.is_vector = shape.is_vector && fits_vectors(each);
  for (const TensorView& each : vectors) shape.is_vector = shape.is_vector && fits_vector(each);
  return shape;
}

KdaGateParams gate_params(const TensorView& f, const TensorView& dt_bias, const TensorView& a_log,
                          std::optional<double> lower_bound) {
  KdaGateParams p{};
  p.f = rows_of(f);
  p.dt_bias = floats(dt_bias), p.a_log = floats(a_log);
  p.is_bounded = lower_bound.has_value(), p.lower_bound = static_cast<float>(lower_bound.value_or(0.0));
  return p;
}

}  // namespace

const char* l2_norm_forward_refuses(const L2NormForward& args) {
  return refuses(args.x);
}
void l2_norm_forward(OpContext& ctx, const L2NormForward& args) {
  if (args.x.num_elements() == 0) return;
  L2NormParams p{};
  p.shape = shape_of(args.x, {args.x, args.y}, {});
  p.in = rows_of(args.x), p.out = rows_of(args.y);
  p.eps = static_cast<float>(args.eps), p.rstd = floats(args.rstd);
  launch_l2_norm_forward(p, stream_of(ctx));
}

const char* l2_norm_backward_refuses(const L2NormBackward& args) {
  return refuses(args.y);
}
void l2_norm_backward(OpContext& ctx, const L2NormBackward& args) {
  if (args.y.num_elements() == 0) return;
  L2NormParams p{};
  p.shape = shape_of(args.y, {args.y, args.dy, args.dx}, {});
  p.in = rows_of(args.y), p.dy = rows_of(args.dy), p.out = rows_of(args.dx);
  p.rstd = floats(args.rstd);
  launch_l2_norm_backward(p, stream_of(ctx));
}

const char* kda_gate_forward_refuses(const KdaGateForward& args) {
  return refuses(args.f);
}
void kda_gate_forward(OpContext& ctx, const KdaGateForward& args) {
  if (args.f.num_elements() == 0) return;
  KdaGateParams p = gate_params(args.f, args.dt_bias, args.a_log, args.lower_bound);
  p.shape = shape_of(args.f, {args.f, args.g}, {args.dt_bias});
  p.beta_logits = args.beta_logits.data, p.logits_stride = args.beta_logits.stride(0);
  p.g = floats(args.g), p.beta = floats(args.beta);
  launch_kda_gate_forward(p, stream_of(ctx));
}

const char* kda_gate_backward_refuses(const KdaGateBackward& args) {
  return refuses(args.f);
}
void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args) {
  if (args.f.num_elements() == 0) return;
  KdaGateParams p = gate_params(args.f, args.dt_bias, args.a_log, args.lower_bound);
  p.shape = shape_of(args.f, {args.f, args.df, args.dg}, {args.dt_bias});
  p.df = rows_of(args.df);
  p.dbeta_logits = args.dbeta_logits.data, p.dlogits_stride = args.dbeta_logits.stride(0);
  p.beta = floats(args.beta), p.dg = floats(args.dg), p.dbeta = floats(args.dbeta);
  p.d_dt_bias = floats(args.d_dt_bias), p.d_a_log = floats(args.d_a_log);
  p.token_blocks = kda_token_blocks(p.shape.tokens, p.shape.heads);
  p.partials = floats(ctx.scratch.take(DType::f32, {p.token_blocks, p.shape.heads, p.shape.dim + 1}));
  launch_kda_gate_backward(p, stream_of(ctx));
}

const char* gated_rms_norm_forward_refuses(const GatedRmsNormForward& args) {
  return refuses(args.o);
}
void gated_rms_norm_forward(OpContext& ctx, const GatedRmsNormForward& args) {
  if (args.o.num_elements() == 0) return;
  GatedRmsNormParams p{};
  p.shape = shape_of(args.o, {args.o, args.gate, args.y}, {args.weight});
  p.o = rows_of(args.o), p.gate = rows_of(args.gate), p.y = rows_of(args.y);
  p.weight = floats(args.weight), p.eps = static_cast<float>(args.eps), p.rstd = floats(args.rstd);
  launch_gated_rms_norm_forward(p, stream_of(ctx));
}

const char* gated_rms_norm_backward_refuses(const GatedRmsNormBackward& args) {
  return refuses(args.o);
}
void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args) {
  if (args.o.num_elements() == 0) return;
  GatedRmsNormParams p{};
  p.shape = shape_of(args.o, {args.o, args.gate, args.dy, args.d_o, args.dgate, args.y}, {args.weight});
  p.o = rows_of(args.o), p.gate = rows_of(args.gate), p.y = rows_of(args.y), p.dy = rows_of(args.dy);
  p.d_o = rows_of(args.d_o), p.dgate = rows_of(args.dgate);
  p.weight = floats(args.weight), p.rstd = floats(args.rstd), p.dweight = floats(args.dweight);
  p.token_blocks = kda_token_blocks(p.shape.tokens, p.shape.heads);
  p.partials = floats(ctx.scratch.take(DType::f32, {p.token_blocks, p.shape.heads, p.shape.dim}));
  launch_gated_rms_norm_backward(p, stream_of(ctx));
}

}  // namespace lamina::ops::cuda
