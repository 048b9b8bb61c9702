#include "core/ops/short_conv/short_conv.h"

#include "core/ops/document_starts.h"
#include "core/ops/gpu/register.h"
#include "core/ops/short_conv/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void validate(const TensorView& x, const TensorView& weight, const TensorView& document_starts) {
  LAMINA_CHECK(x.rank() == 3 && weight.rank() == 2, "x {}, weight {}", x.to_string(), weight.to_string());
  expect_compute_dtype(x, "x");
  expect_shape(x, "x", x.shape);
  expect(weight, "weight", accumulation_dtype(x.dtype), {x.size(2), weight.size(1)});
  expect_contiguous(weight, "weight");
  LAMINA_CHECK(weight.size(1) >= 1, "weight {} has no taps", weight.to_string());
  check_document_starts(document_starts, x.size(0), x.size(1));
}

constexpr Implementation<ShortConvForward> short_conv_forward_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(short_conv_forward)  //
    {"cpu", cpu::short_conv_forward_refuses, cpu::short_conv_forward},
    {"ref", nullptr, ref::short_conv_forward}};
constexpr Implementation<ShortConvBackward> short_conv_backward_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(short_conv_backward)  //
    {"cpu", cpu::short_conv_backward_refuses, cpu::short_conv_backward},
    {"ref", nullptr, ref::short_conv_backward}};

}  // namespace

void short_conv_forward(OpContext& ctx, const ShortConvForward& args) {
  validate(args.x, args.weight, args.document_starts);
  expect(args.y, "y", args.x.dtype, args.x.shape);
  dispatch<ShortConvForward>(ctx, "short_conv_forward", short_conv_forward_implementations, args);
}

void short_conv_backward(OpContext& ctx, const ShortConvBackward& args) {
  validate(args.x, args.weight, args.document_starts);
  expect(args.dy, "dy", args.x.dtype, args.x.shape);
  expect(args.dx, "dx", args.x.dtype, args.x.shape);
  LAMINA_CHECK(args.dx.data != args.dy.data || args.dx.num_elements() == 0, "dx is dy, whose later tokens it needs");
  expect(args.dweight, "dweight", args.weight.dtype, args.weight.shape);
  expect_contiguous(args.dweight, "dweight");
  dispatch<ShortConvBackward>(ctx, "short_conv_backward", short_conv_backward_implementations, args);
}

}  // namespace lamina::ops
