#include "core/ops/swiglu/implementations.h"

#include <cmath>

#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

template <class A>
A weight_of(const TensorView& weight, int64_t t) {
  return weight ? weight.as<A>()[t] : A(1);
}

template <class A>
void forward(const SwigluForward& args) {
  const size_t width = static_cast<size_t>(args.y.size(1));
  for (int64_t t = 0; t < args.y.size(0); ++t) {
    const Row<A> gate_up = load_row<A>(args.gate_up, t);
    const A weight = weight_of<A>(args.weight, t);
    Row<A> y(width);
    for (size_t i = 0; i < width; ++i) y[i] = gate_up[i] * sigmoid(gate_up[i]) * gate_up[width + i] * weight;
    store_row(args.y, t, y);
  }
}

template <class A>
void backward(const SwigluBackward& args) {
  const size_t width = static_cast<size_t>(args.dy.size(1));
  for (int64_t t = 0; t < args.dy.size(0); ++t) {
    const Row<A> gate_up = load_row<A>(args.gate_up, t);
    const Row<A> dy = load_row<A>(args.dy, t);
    const A weight = weight_of<A>(args.weight, t);
    Row<A> dgate_up(2 * width), y(width);
    A dweight = 0;
    for (size_t i = 0; i < width; ++i) {
      const A gate = gate_up[i], up = gate_up[width + i], s = sigmoid(gate);
      dgate_up[i] = weight * dy[i] * up * s * (A(1) + gate * (A(1) - s));
      dgate_up[width + i] = weight * dy[i] * gate * s;
      y[i] = gate * s * up * weight;
      dweight += dy[i] * gate * s * up;
    }
    store_row(args.dgate_up, t, dgate_up);
    if (args.y) store_row(args.y, t, y);
    if (args.dweight) args.dweight.as<A>()[t] = dweight;
  }
}

}  // namespace

void swiglu_forward(OpContext&, const SwigluForward& args) {
  visit_acc(args.y.dtype, [&]<class A>(A) { forward<A>(args); });
}
void swiglu_backward(OpContext&, const SwigluBackward& args) {
  visit_acc(args.dy.dtype, [&]<class A>(A) { backward<A>(args); });
}

}  // namespace lamina::ops::ref
