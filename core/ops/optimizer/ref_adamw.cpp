#include "core/ops/optimizer/implementations.h"

#include <cmath>

#include "core/ops/optimizer/adamw_scalars.h"
#include "core/ops/rows.h"

namespace lamina::ops::ref {

void adamw(OpContext&, const AdamW& args) {
  visit_acc(args.master.dtype, [&]<class A>(A) {
    const AdamWScalars<A> s(args);
    A* master = args.master.as<A>();
    A* first = args.m.as<A>();
    A* second = args.v.as<A>();
    const A* grad = args.grad.as<A>();
    for (int64_t i = 0; i < args.master.size(0); ++i) {
      const A g = s.grad_scale * grad[i];
      // Fused explicitly: what a compiler may or may not do by itself would change the bits.
      first[i] = std::fma(s.one_minus_beta1, g, s.beta1 * first[i]);
      second[i] = std::fma(s.one_minus_beta2, g * g, s.beta2 * second[i]);
      const A root = std::sqrt(second[i] * s.inverse_correction2) + s.eps;
      master[i] = std::fma(s.decay, master[i], -(s.step_size * first[i] / root));
    }
    if (args.param) {
      visit_float(args.param.dtype, [&]<class T>(T) {
        for (int64_t i = 0; i < args.master.size(0); ++i) args.param.as<T>()[i] = round_to<T>(master[i]);
      });
    }
  });
}

}  // namespace lamina::ops::ref
