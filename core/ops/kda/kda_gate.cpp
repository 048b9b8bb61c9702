// What stands around Kimi Delta Attention in its layer: norms of queries and keys, gates, the gated norm of the output.
#include "core/ops/gpu/register.h"
#include "core/ops/kda/implementations.h"
#include "core/ops/kda/kda.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_heads(const TensorView& view, const char* what) {
  LAMINA_CHECK(view.rank() == 3, "{} is {}, expected [tokens, heads, dim]", what, view.to_string());
  expect_compute_dtype(view, what);
  expect_shape(view, what, view.shape);
}
void expect_plain(const TensorView& view, const char* what, DType dtype, const Shape& shape) {
  expect(view, what, dtype, shape);
  expect_contiguous(view, what);
}

// Of the operands that both directions of the gate read; returns [tokens, heads].
template <class Args>
Shape validate_gate(const Args& args) {
  expect_heads(args.f, "f");
  const DType acc = accumulation_dtype(args.f.dtype);
  expect_plain(args.dt_bias, "dt_bias", acc, {args.f.size(1), args.f.size(2)});
  expect_plain(args.a_log, "a_log", acc, {args.f.size(1)});
  if (args.lower_bound) LAMINA_CHECK(*args.lower_bound < 0, "lower_bound is {}, expected below 0", *args.lower_bound);
  return {args.f.size(0), args.f.size(1)};
}

// Likewise of the gated norm.
template <class Args>
void validate_gated_norm(const Args& args) {
  expect_heads(args.o, "o");
  const DType acc = accumulation_dtype(args.o.dtype);
  expect_plain(args.weight, "weight", acc, {args.o.size(2)});
  expect(args.gate, "gate", args.o.dtype, args.o.shape);
  expect_plain(args.rstd, "rstd", acc, {args.o.size(0), args.o.size(1)});
}

}  // namespace

void l2_norm_forward(OpContext& ctx, const L2NormForward& args) {
  static constexpr Implementation<L2NormForward> list[] = {LAMINA_CUDA_IMPLEMENTATION(l2_norm_forward)  //
                                                           {"cpu", cpu::l2_norm_forward_refuses, cpu::l2_norm_forward},
                                                           {"ref", nullptr, ref::l2_norm_forward}};
  expect_heads(args.x, "x");
  expect(args.y, "y", args.x.dtype, args.x.shape);
  expect_plain(args.rstd, "rstd", accumulation_dtype(args.x.dtype), {args.x.size(0), args.x.size(1)});
  dispatch<L2NormForward>(ctx, "l2_norm_forward", list, args);
}

void l2_norm_backward(OpContext& ctx, const L2NormBackward& args) {
  static constexpr Implementation<L2NormBackward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(l2_norm_backward)  //
      {"cpu", cpu::l2_norm_backward_refuses, cpu::l2_norm_backward},
      {"ref", nullptr, ref::l2_norm_backward}};
  expect_heads(args.y, "y");
  expect_plain(args.rstd, "rstd", accumulation_dtype(args.y.dtype), {args.y.size(0), args.y.size(1)});
  expect(args.dy, "dy", args.y.dtype, args.y.shape);
  expect(args.dx, "dx", args.y.dtype, args.y.shape);
  dispatch<L2NormBackward>(ctx, "l2_norm_backward", list, args);
}

void kda_gate_forward(OpContext& ctx, const KdaGateForward& args) {
  static constexpr Implementation<KdaGateForward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(kda_gate_forward)  //
      {"cpu", cpu::kda_gate_forward_refuses, cpu::kda_gate_forward},
      {"ref", nullptr, ref::kda_gate_forward}};
  const Shape scalars = validate_gate(args);
  const DType acc = accumulation_dtype(args.f.dtype);
  expect(args.beta_logits, "beta_logits", args.f.dtype, scalars);
  expect_plain(args.g, "g", acc, args.f.shape);
  expect_plain(args.beta, "beta", acc, scalars);
  dispatch<KdaGateForward>(ctx, "kda_gate_forward", list, args);
}

void kda_gate_backward(OpContext& ctx, const KdaGateBackward& args) {
  static constexpr Implementation<KdaGateBackward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(kda_gate_backward)  //
      {"cpu", cpu::kda_gate_backward_refuses, cpu::kda_gate_backward},
      {"ref", nullptr, ref::kda_gate_backward}};
  const Shape scalars = validate_gate(args);
  const DType acc = accumulation_dtype(args.f.dtype);
  expect_plain(args.beta, "beta", acc, scalars);
  expect_plain(args.dg, "dg", acc, args.f.shape);
  expect_plain(args.dbeta, "dbeta", acc, scalars);
  expect(args.df, "df", args.f.dtype, args.f.shape);
  expect(args.dbeta_logits, "dbeta_logits", args.f.dtype, scalars);
  expect_plain(args.d_dt_bias, "d_dt_bias", acc, args.dt_bias.shape);
  expect_plain(args.d_a_log, "d_a_log", acc, args.a_log.shape);
  dispatch<KdaGateBackward>(ctx, "kda_gate_backward", list, args);
}

void gated_rms_norm_forward(OpContext& ctx, const GatedRmsNormForward& args) {
  static constexpr Implementation<GatedRmsNormForward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(gated_rms_norm_forward)  //
      {"cpu", cpu::gated_rms_norm_forward_refuses, cpu::gated_rms_norm_forward},
      {"ref", nullptr, ref::gated_rms_norm_forward}};
  validate_gated_norm(args);
  expect(args.y, "y", args.o.dtype, args.o.shape);
  dispatch<GatedRmsNormForward>(ctx, "gated_rms_norm_forward", list, args);
}

void gated_rms_norm_backward(OpContext& ctx, const GatedRmsNormBackward& args) {
  static constexpr Implementation<GatedRmsNormBackward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(gated_rms_norm_backward)  //
      {"cpu", cpu::gated_rms_norm_backward_refuses, cpu::gated_rms_norm_backward},
      {"ref", nullptr, ref::gated_rms_norm_backward}};
  validate_gated_norm(args);
  expect(args.dy, "dy", args.o.dtype, args.o.shape);
  expect(args.d_o, "d_o", args.o.dtype, args.o.shape);
  expect(args.dgate, "dgate", args.o.dtype, args.o.shape);
  expect_plain(args.dweight, "dweight", args.weight.dtype, args.weight.shape);
  if (args.y) expect(args.y, "y", args.o.dtype, args.o.shape);
  dispatch<GatedRmsNormBackward>(ctx, "gated_rms_norm_backward", list, args);
}

}  // namespace lamina::ops
