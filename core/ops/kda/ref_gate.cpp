#include <cmath>

#include "core/ops/kda/implementations.h"
#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

// Linear above 20, where log(1 + e^-x) is below fp32's rounding of x.
template <class A>
A softplus(A x) {
  return x > A(20) ? x : std::log1p(std::exp(x));
}

// body(token, head, row), with row = token * heads + head.
template <class Body>
void each_row(const TensorView& view, Body&& body) {
  for (int64_t t = 0; t < view.size(0); ++t) {
    for (int64_t h = 0; h < view.size(1); ++h) body(t, h, t * view.size(1) + h);
  }
}
// The rows of one head.
TensorView of_head(const TensorView& view, int64_t head) {
  return view.select(1, head);
}

template <class A>
void l2_forward(const L2NormForward& args) {
  each_row(args.x, [&](int64_t t, int64_t h, int64_t row) {
    Row<A> x = load_row<A>(of_head(args.x, h), t);
    const A rstd = A(1) / std::sqrt(dot(x, x) + static_cast<A>(args.eps));
    for (A& value : x) value *= rstd;
    store_row(of_head(args.y, h), t, x);
    args.rstd.as<A>()[row] = rstd;
  });
}

template <class A>
void l2_backward(const L2NormBackward& args) {
  each_row(args.y, [&](int64_t t, int64_t h, int64_t row) {
    const Row<A> y = load_row<A>(of_head(args.y, h), t);
    Row<A> dy = load_row<A>(of_head(args.dy, h), t);
    const A projection = dot(y, dy), rstd = args.rstd.as<A>()[row];
    for (size_t i = 0; i < y.size(); ++i) dy[i] = rstd * (dy[i] - projection * y[i]);
    store_row(of_head(args.dx, h), t, dy);
  });
}

template <class A>
void gate_forward(const KdaGateForward& args) {
  const auto d_k = static_cast<size_t>(args.f.size(2));
  each_row(args.f, [&](int64_t t, int64_t h, int64_t row) {
    const Row<A> f = load_row<A>(of_head(args.f, h), t), logits = load_row<A>(args.beta_logits, t);
    const A* bias = args.dt_bias.as<A>() + h * args.f.size(2);
    const A rate = std::exp(args.a_log.as<A>()[h]);
    A* g = args.g.as<A>() + row * args.f.size(2);
    for (size_t i = 0; i < d_k; ++i) {
      const A x = f[i] + bias[i];
      g[i] = args.lower_bound ? static_cast<A>(*args.lower_bound) * sigmoid(rate * x) : -rate * softplus(x);
    }
    args.beta.as<A>()[row] = sigmoid(logits[static_cast<size_t>(h)]);
  });
}

template <class A>
void gate_backward(const KdaGateBackward& args) {
  const int64_t d_k = args.f.size(2);
  each_row(args.f, [&](int64_t t, int64_t h, int64_t row) {
    Row<A> f = load_row<A>(of_head(args.f, h), t);
    const A *bias = args.dt_bias.as<A>() + h * d_k, *dg = args.dg.as<A>() + row * d_k;
    A *dbias = args.d_dt_bias.as<A>() + h * d_k, *d_a_log = args.d_a_log.as<A>() + h;
    const A rate = std::exp(args.a_log.as<A>()[h]);
    for (size_t i = 0; i < f.size(); ++i) {
      const A x = f[i] + bias[i];
      if (args.lower_bound) {
        const A s = sigmoid(rate * x), slope = static_cast<A>(*args.lower_bound) * s * (A(1) - s) * rate;
        f[i] = dg[i] * slope;
        *d_a_log += dg[i] * slope * x;
      } else {
        f[i] = -dg[i] * rate * sigmoid(x);
        *d_a_log -= dg[i] * rate * softplus(x);
      }
      dbias[i] += f[i];
    }
    store_row(of_head(args.df, h), t, f);
    const A beta = args.beta.as<A>()[row];
    visit_float(args.dbeta_logits.dtype, [&]<class T>(T) {
      args.dbeta_logits.as<T>()[t * args.dbeta_logits.stride(0) + h] =
          round_to<T>(args.dbeta.as<A>()[row] * beta * (A(1) - beta));
    });
  });
}

template <class A>
void norm_forward(const GatedRmsNormForward& args) {
  const A* weight = args.weight.as<A>();
  each_row(args.o, [&](int64_t t, int64_t h, int64_t row) {
    Row<A> o = load_row<A>(of_head(args.o, h), t);
    const Row<A> gate = load_row<A>(of_head(args.gate, h), t);
    const A rstd = A(1) / std::sqrt(dot(o, o) / static_cast<A>(o.size()) + static_cast<A>(args.eps));
    for (size_t i = 0; i < o.size(); ++i) o[i] = o[i] * rstd * weight[i] * sigmoid(gate[i]);
    store_row(of_head(args.y, h), t, o);
    args.rstd.as<A>()[row] = rstd;
  });
}

template <class A>
void norm_backward(const GatedRmsNormBackward& args) {
  const A* weight = args.weight.as<A>();
  A* dweight = args.dweight.as<A>();
  each_row(args.o, [&](int64_t t, int64_t h, int64_t row) {
    Row<A> o = load_row<A>(of_head(args.o, h), t), gate = load_row<A>(of_head(args.gate, h), t);
    Row<A> dy = load_row<A>(of_head(args.dy, h), t), y(o.size());
    const A rstd = args.rstd.as<A>()[row];
    for (size_t i = 0; i < o.size(); ++i) {
      const A s = sigmoid(gate[i]);
      o[i] *= rstd;
      y[i] = o[i] * weight[i] * s;
      gate[i] = dy[i] * o[i] * weight[i] * s * (A(1) - s);
      dweight[i] += dy[i] * s * o[i];
      dy[i] *= s * weight[i];
    }
    const A projection = dot(dy, o) / static_cast<A>(o.size());
    for (size_t i = 0; i < o.size(); ++i) dy[i] = rstd * (dy[i] - projection * o[i]);
    store_row(of_head(args.d_o, h), t, dy);
    store_row(of_head(args.dgate, h), t, gate);
    if (args.y) store_row(of_head(args.y, h), t, y);
  });
}

}  // namespace

void l2_norm_forward(OpContext&, const L2NormForward& args) {
  visit_acc(args.x.dtype, [&]<class A>(A) { l2_forward<A>(args); });
}
void l2_norm_backward(OpContext&, const L2NormBackward& args) {
  visit_acc(args.y.dtype, [&]<class A>(A) { l2_backward<A>(args); });
}
void kda_gate_forward(OpContext&, const KdaGateForward& args) {
  visit_acc(args.f.dtype, [&]<class A>(A) { gate_forward<A>(args); });
}
void kda_gate_backward(OpContext&, const KdaGateBackward& args) {
  visit_acc(args.f.dtype, [&]<class A>(A) { gate_backward<A>(args); });
}
void gated_rms_norm_forward(OpContext&, const GatedRmsNormForward& args) {
  visit_acc(args.o.dtype, [&]<class A>(A) { norm_forward<A>(args); });
}
void gated_rms_norm_backward(OpContext&, const GatedRmsNormBackward& args) {
  visit_acc(args.o.dtype, [&]<class A>(A) { norm_backward<A>(args); });
}

}  // namespace lamina::ops::ref
