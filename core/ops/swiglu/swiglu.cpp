#include "core/ops/swiglu/swiglu.h"

#include "core/ops/gpu/register.h"
#include "core/ops/swiglu/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_weight(const TensorView& weight, std::string_view what, const TensorView& y) {
  if (weight) expect(weight, what, accumulation_dtype(y.dtype), {y.size(0)});
}

}  // namespace

void swiglu_forward(OpContext& ctx, const SwigluForward& args) {
  static constexpr Implementation<SwigluForward> list[] = {LAMINA_CUDA_IMPLEMENTATION(swiglu_forward)  //
                                                           {"cpu", cpu::swiglu_forward_refuses, cpu::swiglu_forward},
                                                           {"ref", nullptr, ref::swiglu_forward}};
  LAMINA_CHECK(args.y.rank() == 2, "y is {}", args.y.to_string());
  expect_compute_dtype(args.y, "y");
  expect_shape(args.y, "y", args.y.shape);
  expect(args.gate_up, "gate_up", args.y.dtype, {args.y.size(0), 2 * args.y.size(1)});
  expect_weight(args.weight, "weight", args.y);
  dispatch<SwigluForward>(ctx, "swiglu_forward", list, args);
}

void swiglu_backward(OpContext& ctx, const SwigluBackward& args) {
  static constexpr Implementation<SwigluBackward> list[] = {LAMINA_CUDA_IMPLEMENTATION(swiglu_backward)  //
                                                            {"cpu", cpu::swiglu_backward_refuses, cpu::swiglu_backward},
                                                            {"ref", nullptr, ref::swiglu_backward}};
  LAMINA_CHECK(args.dy.rank() == 2, "dy is {}", args.dy.to_string());
  expect_compute_dtype(args.dy, "dy");
  expect_shape(args.dy, "dy", args.dy.shape);
  expect(args.gate_up, "gate_up", args.dy.dtype, {args.dy.size(0), 2 * args.dy.size(1)});
  expect(args.dgate_up, "dgate_up", args.dy.dtype, args.gate_up.shape);
  if (args.y) expect(args.y, "y", args.dy.dtype, args.dy.shape);
  expect_weight(args.weight, "weight", args.dy);
  expect_weight(args.dweight, "dweight", args.dy);
  LAMINA_CHECK(args.weight || !args.dweight, "dweight is wanted of rows without weights");
  dispatch<SwigluBackward>(ctx, "swiglu_backward", list, args);
}

}  // namespace lamina::ops
