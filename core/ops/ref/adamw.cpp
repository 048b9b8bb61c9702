#include "core/ops/ref/adamw.h"

#include <cmath>

#include "core/ops/adamw_scalars.h"
#include "core/ops/ref/rows.h"

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
      first[i] = s.beta1 * first[i] + s.one_minus_beta1 * g;
      second[i] = s.beta2 * second[i] + s.one_minus_beta2 * (g * g);
      master[i] = s.decay * master[i] - s.step_size * first[i] / (std::sqrt(second[i] * s.inverse_correction2) + s.eps);
    }
    if (args.param) {
      visit_float(args.param.dtype, [&]<class T>(T) {
        for (int64_t i = 0; i < args.master.size(0); ++i) args.param.as<T>()[i] = round_to<T>(master[i]);
      });
    }
  });
}

}  // namespace lamina::ops::ref
