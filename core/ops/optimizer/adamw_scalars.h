// The scalars of an AdamW step, rounded once to the accumulation type: every implementation starts from the same ones.
#pragma once

#include <cmath>

#include "core/ops/optimizer/adamw.h"

namespace lamina::ops {

template <class A>
struct AdamWScalars {
  A beta1, one_minus_beta1, beta2, one_minus_beta2, grad_scale, decay, step_size, inverse_correction2, eps;

  explicit AdamWScalars(const AdamW& args)
      : beta1(static_cast<A>(args.beta1)),
        one_minus_beta1(static_cast<A>(1.0 - args.beta1)),
        beta2(static_cast<A>(args.beta2)),
        one_minus_beta2(static_cast<A>(1.0 - args.beta2)),
        grad_scale(static_cast<A>(args.grad_scale)),
        decay(static_cast<A>(1.0 - args.lr * args.weight_decay)),
        step_size(static_cast<A>(args.lr / (1.0 - std::pow(args.beta1, static_cast<double>(args.step))))),
        inverse_correction2(static_cast<A>(1.0 / (1.0 - std::pow(args.beta2, static_cast<double>(args.step))))),
        eps(static_cast<A>(args.eps)) {}
};

}  // namespace lamina::ops
