#include "core/ops/optimizer/muon.h"

#include "core/ops/gpu/register.h"
#include "core/ops/optimizer/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_acc_array(const TensorView& x, const char* what) {
  LAMINA_CHECK(x.dtype == DType::f32 || x.dtype == DType::f64, "{} is {}, expected fp32 or fp64", what, x.to_string());
  LAMINA_CHECK(x.rank() == 1, "{} is {}", what, x.to_string());
  expect_shape(x, what, x.shape);
}

}  // namespace

void muon_momentum(OpContext& ctx, const MuonMomentum& args) {
  static constexpr Implementation<MuonMomentum> list[] = {LAMINA_CUDA_IMPLEMENTATION(muon_momentum)  //
                                                          {"cpu", cpu::muon_momentum_refuses, cpu::muon_momentum},
                                                          {"ref", nullptr, ref::muon_momentum}};
  expect_acc_array(args.grad, "grad");
  expect(args.buffer, "buffer", args.grad.dtype, args.grad.shape);
  expect(args.out, "out", args.grad.dtype, args.grad.shape);
  dispatch<MuonMomentum>(ctx, "muon_momentum", list, args);
}

void muon_apply(OpContext& ctx, const MuonApply& args) {
  static constexpr Implementation<MuonApply> list[] = {LAMINA_CUDA_IMPLEMENTATION(muon_apply)  //
                                                       {"cpu", cpu::muon_apply_refuses, cpu::muon_apply},
                                                       {"ref", nullptr, ref::muon_apply}};
  expect_acc_array(args.master, "master");
  expect(args.update, "update", args.master.dtype, args.master.shape);
  if (args.param) {
    expect_shape(args.param, "param", args.master.shape);
    expect_compute_dtype(args.param, "param");
    LAMINA_CHECK(accumulation_dtype(args.param.dtype) == args.master.dtype, "param is {}, master {}",
                 args.param.to_string(), args.master.to_string());
  }
  dispatch<MuonApply>(ctx, "muon_apply", list, args);
}

}  // namespace lamina::ops
