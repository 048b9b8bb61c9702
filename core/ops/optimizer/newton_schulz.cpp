#include "core/ops/optimizer/newton_schulz.h"

#include "core/ops/gpu/register.h"
#include "core/ops/optimizer/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {

void newton_schulz(OpContext& ctx, const NewtonSchulz& args) {
  static constexpr Implementation<NewtonSchulz> list[] = {LAMINA_CUDA_IMPLEMENTATION(newton_schulz)  //
                                                          {"cpu", cpu::newton_schulz_refuses, cpu::newton_schulz},
                                                          {"ref", nullptr, ref::newton_schulz}};
  LAMINA_CHECK(args.x.rank() == 3, "x is {}", args.x.to_string());
  expect(args.x, "x", accumulation_dtype(args.x.dtype), args.x.shape);
  expect_contiguous(args.x, "x");
  LAMINA_CHECK(args.products == DType::bf16 || args.products == args.x.dtype, "products in {}, x {}",
               name_of(args.products), args.x.to_string());
  LAMINA_CHECK(args.num_steps >= 0, "{} steps", args.num_steps);
  if (args.x.num_elements() == 0) return;
  dispatch<NewtonSchulz>(ctx, "newton_schulz", list, args);
}

}  // namespace lamina::ops
