#include "core/ops/rms_norm/rms_norm.h"

#include "core/ops/gpu/register.h"
#include "core/ops/rms_norm/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {

void rms_norm_forward(OpContext& ctx, const RmsNormForward& args) {
  static constexpr Implementation<RmsNormForward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(rms_norm_forward)  //
      {"cpu", cpu::rms_norm_forward_refuses, cpu::rms_norm_forward},
      {"ref", nullptr, ref::rms_norm_forward}};
  const DType dtype = args.x.dtype;
  const Shape shape = args.x.shape;
  LAMINA_CHECK(shape.rank() == 2, "x is {}", args.x.to_string());
  expect_compute_dtype(args.x, "x");
  expect_shape(args.x, "x", shape);
  expect_either(args.weight, "weight", dtype, {shape[1]});
  expect(args.y, "y", dtype, shape);
  expect(args.rstd, "rstd", accumulation_dtype(dtype), {shape[0]});
  LAMINA_CHECK(args.delta.empty() == args.sum.empty(), "delta and sum are given together");
  if (args.delta) {
    expect(args.delta, "delta", dtype, shape);
    expect(args.sum, "sum", dtype, shape);
  }
  dispatch<RmsNormForward>(ctx, "rms_norm_forward", list, args);
}

void rms_norm_backward(OpContext& ctx, const RmsNormBackward& args) {
  static constexpr Implementation<RmsNormBackward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(rms_norm_backward)  //
      {"cpu", cpu::rms_norm_backward_refuses, cpu::rms_norm_backward},
      {"ref", nullptr, ref::rms_norm_backward}};
  const DType dtype = args.x.dtype;
  const Shape shape = args.x.shape;
  LAMINA_CHECK(shape.rank() == 2, "x is {}", args.x.to_string());
  expect_compute_dtype(args.x, "x");
  expect_shape(args.x, "x", shape);
  expect_either(args.weight, "weight", dtype, {shape[1]});
  expect(args.rstd, "rstd", accumulation_dtype(dtype), {shape[0]});
  expect(args.dy, "dy", dtype, shape);
  expect_either(args.dx, "dx", dtype, shape);
  expect(args.dweight, "dweight", accumulation_dtype(dtype), {shape[1]});
  dispatch<RmsNormBackward>(ctx, "rms_norm_backward", list, args);
}

void rms_norm_apply(OpContext& ctx, const RmsNormApply& args) {
  static constexpr Implementation<RmsNormApply> list[] = {LAMINA_CUDA_IMPLEMENTATION(rms_norm_apply)  //
                                                          {"cpu", cpu::rms_norm_apply_refuses, cpu::rms_norm_apply},
                                                          {"ref", nullptr, ref::rms_norm_apply}};
  const DType dtype = args.x.dtype;
  const Shape shape = args.x.shape;
  LAMINA_CHECK(shape.rank() == 2, "x is {}", args.x.to_string());
  expect_compute_dtype(args.x, "x");
  expect_shape(args.x, "x", shape);
  expect_either(args.weight, "weight", dtype, {shape[1]});
  expect(args.rstd, "rstd", accumulation_dtype(dtype), {shape[0]});
  expect(args.y, "y", dtype, shape);
  dispatch<RmsNormApply>(ctx, "rms_norm_apply", list, args);
}

}  // namespace lamina::ops
