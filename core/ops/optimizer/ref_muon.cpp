#include "core/ops/optimizer/implementations.h"

#include <cmath>

#include "core/ops/rows.h"

namespace lamina::ops::ref {

void muon_momentum(OpContext&, const MuonMomentum& args) {
  visit_acc(args.grad.dtype, [&]<class A>(A) {
    const A momentum = static_cast<A>(args.momentum), scale = static_cast<A>(args.grad_scale);
    const A* grad = args.grad.as<A>();
    A* buffer = args.buffer.as<A>();
    A* out = args.out.as<A>();
    for (int64_t i = 0; i < args.grad.size(0); ++i) {
      const A g = scale * grad[i];
      // Fused explicitly: what a compiler may or may not do by itself would change the bits.
      buffer[i] = std::fma(momentum, buffer[i], g);
      out[i] = std::fma(momentum, buffer[i], g);
    }
  });
}

void muon_apply(OpContext&, const MuonApply& args) {
  visit_acc(args.master.dtype, [&]<class A>(A) {
    const A decay = static_cast<A>(1.0 - args.lr * args.weight_decay);
    const A step = static_cast<A>(args.lr * args.update_scale);
    A* master = args.master.as<A>();
    const A* update = args.update.as<A>();
    for (int64_t i = 0; i < args.master.size(0); ++i) master[i] = std::fma(decay, master[i], -(step * update[i]));
    if (!args.param) return;
    visit_float(args.param.dtype, [&]<class T>(T) {
      for (int64_t i = 0; i < args.master.size(0); ++i) args.param.as<T>()[i] = round_to<T>(master[i]);
    });
  });
}

}  // namespace lamina::ops::ref
