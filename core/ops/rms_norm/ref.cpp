#include "core/ops/rms_norm/implementations.h"

#include <cmath>

#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

template <class A>
void forward(const RmsNormForward& args) {
  const Row<A> weight = load_vector<A>(args.weight);
  const TensorView& input = args.sum ? args.sum : args.x;
  for (int64_t r = 0; r < args.x.size(0); ++r) {
    if (args.sum) {
      Row<A> sum = load_row<A>(args.x, r);
      const Row<A> delta = load_row<A>(args.delta, r);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += delta[i];
      store_row(args.sum, r, sum);
    }
    Row<A> x = load_row<A>(input, r);  // what was stored, rounded: backward will read the same
    const A rstd = A(1) / std::sqrt(dot(x, x) / static_cast<A>(x.size()) + static_cast<A>(args.eps));
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * rstd * weight[i];
    store_row(args.y, r, x);
    args.rstd.as<A>()[r] = rstd;
  }
}

template <class A>
void backward(const RmsNormBackward& args) {
  const Row<A> weight = load_vector<A>(args.weight);
  A* dweight = args.dweight.as<A>();
  for (int64_t r = 0; r < args.x.size(0); ++r) {
    const Row<A> x = load_row<A>(args.x, r);
    Row<A> dy = load_row<A>(args.dy, r);
    const A rstd = args.rstd.as<A>()[r];
    for (size_t i = 0; i < x.size(); ++i) {
      dweight[i] += dy[i] * x[i] * rstd;
      dy[i] *= weight[i];
    }
    const A projection = dot(dy, x) * rstd * rstd / static_cast<A>(x.size());
    for (size_t i = 0; i < x.size(); ++i) dy[i] = rstd * (dy[i] - projection * x[i]);
    store_row(args.dx, r, dy, args.dx_mode);
  }
}

template <class A>
void apply(const RmsNormApply& args) {
  const Row<A> weight = load_vector<A>(args.weight);
  for (int64_t r = 0; r < args.x.size(0); ++r) {
    Row<A> x = load_row<A>(args.x, r);
    for (size_t i = 0; i < x.size(); ++i) x[i] = x[i] * args.rstd.as<A>()[r] * weight[i];
    store_row(args.y, r, x);
  }
}

}  // namespace

void rms_norm_forward(OpContext&, const RmsNormForward& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) { forward<A>(args); });
}
void rms_norm_backward(OpContext&, const RmsNormBackward& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) { backward<A>(args); });
}
void rms_norm_apply(OpContext&, const RmsNormApply& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) { apply<A>(args); });
}

}  // namespace lamina::ops::ref
