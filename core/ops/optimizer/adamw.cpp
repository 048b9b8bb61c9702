#include "core/ops/optimizer/adamw.h"

#include "core/ops/gpu/register.h"
#include "core/ops/optimizer/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {

void adamw(OpContext& ctx, const AdamW& args) {
  static constexpr Implementation<AdamW> list[] = {LAMINA_CUDA_IMPLEMENTATION(adamw)  //
                                                   {"cpu", cpu::adamw_refuses, cpu::adamw},
                                                   {"ref", nullptr, ref::adamw}};
  const DType acc = args.master.dtype;
  LAMINA_CHECK(acc == DType::f32 || acc == DType::f64, "master is {}, expected fp32 or fp64", args.master.to_string());
  LAMINA_CHECK(args.master.rank() == 1, "master is {}", args.master.to_string());
  const Shape shape = args.master.shape;
  expect_shape(args.master, "master", shape);
  expect(args.grad, "grad", acc, shape);
  expect(args.m, "m", acc, shape);
  expect(args.v, "v", acc, shape);
  if (args.param) {
    expect_shape(args.param, "param", shape);
    expect_compute_dtype(args.param, "param");
    LAMINA_CHECK(accumulation_dtype(args.param.dtype) == acc, "param is {}, master {}", args.param.to_string(),
                 args.master.to_string());
  }
  LAMINA_CHECK(args.step >= 1, "step {}", args.step);
  dispatch<AdamW>(ctx, "adamw", list, args);
}

}  // namespace lamina::ops
