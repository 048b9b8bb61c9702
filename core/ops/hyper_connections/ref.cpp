#include "core/ops/hyper_connections/implementations.h"

#include <algorithm>
#include <cmath>

#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

// Where a token's coefficients lie.
struct Places {
  explicit Places(int64_t num_streams) : n(static_cast<size_t>(num_streams)) {}
  size_t pre(size_t j) const { return j; }
  size_t post(size_t i) const { return n + i; }
  size_t mix(size_t i, size_t j) const { return 2 * n + i * n + j; }
  size_t n;
};

// Which alpha belongs to a row of W.
size_t gate_of(size_t row, size_t n) {
  return row < n ? 0 : row < 2 * n ? 1 : 2;
}

// The softmax over the permutations, from the logits of all rows.
template <class A>
Row<A> permutation_weights(const Row<A>& logits, size_t n) {
  Row<A> weights(logits.begin() + static_cast<std::ptrdiff_t>(2 * n), logits.end());
  const A largest = *std::max_element(weights.begin(), weights.end());
  A sum = 0;
  for (A& weight : weights) {
    weight = std::exp(weight - largest);
    sum += weight;
  }
  for (A& weight : weights) weight /= sum;
  return weights;
}

template <class A>
Row<A> logits_of(const Row<A>& z, A rstd, const Row<A>& alpha, const Row<A>& bias, size_t n) {
  Row<A> logits(z.size());
  for (size_t r = 0; r < z.size(); ++r) logits[r] = alpha[gate_of(r, n)] * rstd * z[r] + bias[r];
  return logits;
}

template <class A>
void coefficients_forward(const HyperCoefficientsForward& args) {
  const Places at(args.num_streams);
  const size_t n = at.n;
  const auto all = permutations(args.num_streams);
  const Row<A> alpha = load_vector<A>(args.alpha), bias = load_vector<A>(args.bias);
  for (int64_t t = 0; t < args.streams.size(0); ++t) {
    const Row<A> x = load_row<A>(args.streams, t);
    const A rstd = A(1) / std::sqrt(dot(x, x) / static_cast<A>(x.size()) + static_cast<A>(args.eps));
    const Row<A> logits = logits_of(load_row<A>(args.projected, t), rstd, alpha, bias, n);
    const Row<A> weights = permutation_weights(logits, n);
    Row<A> out(static_cast<size_t>(num_coefficients(args.num_streams)), A(0));
    for (size_t j = 0; j < n; ++j) out[at.pre(j)] = sigmoid(logits[j]);
    for (size_t i = 0; i < n; ++i) out[at.post(i)] = 2 * sigmoid(logits[n + i]);
    for (size_t k = 0; k < all.size(); ++k)
      for (size_t i = 0; i < n; ++i) out[at.mix(i, static_cast<size_t>(all[k][i]))] += weights[k];
    args.rstd.as<A>()[t] = rstd;
    store_row(args.coefficients, t, out);
  }
}

template <class A>
void coefficients_backward(const HyperCoefficientsBackward& args) {
  const Places at(args.num_streams);
  const size_t n = at.n;
  const auto all = permutations(args.num_streams);
  const Row<A> alpha = load_vector<A>(args.alpha), bias = load_vector<A>(args.bias);
  A* dalpha = args.dalpha.as<A>();
  A* dbias = args.dbias.as<A>();
  for (int64_t t = 0; t < args.streams.size(0); ++t) {
    const Row<A> z = load_row<A>(args.projected, t), c = load_row<A>(args.coefficients, t),
                 dc = load_row<A>(args.dcoefficients, t);
    const A rstd = args.rstd.as<A>()[t];
    const Row<A> weights = permutation_weights(logits_of(z, rstd, alpha, bias, n), n);
    Row<A> dlogit(z.size());
    for (size_t j = 0; j < n; ++j) dlogit[j] = dc[at.pre(j)] * c[at.pre(j)] * (1 - c[at.pre(j)]);
    for (size_t i = 0; i < n; ++i) dlogit[n + i] = dc[at.post(i)] * c[at.post(i)] * (1 - c[at.post(i)] / 2);
    A mean = 0;
    for (size_t k = 0; k < all.size(); ++k) {
      A dweight = 0;
      for (size_t i = 0; i < n; ++i) dweight += dc[at.mix(i, static_cast<size_t>(all[k][i]))];
      dlogit[2 * n + k] = dweight;
      mean += weights[k] * dweight;
    }
    for (size_t k = 0; k < all.size(); ++k) dlogit[2 * n + k] = weights[k] * (dlogit[2 * n + k] - mean);
    Row<A> dz(z.size());
    for (size_t r = 0; r < z.size(); ++r) {
      dbias[r] += dlogit[r];
      dalpha[gate_of(r, n)] += dlogit[r] * rstd * z[r];
      dz[r] = alpha[gate_of(r, n)] * rstd * dlogit[r];
    }
    store_row(args.dprojected, t, dz);
    Row<A> dx = load_row<A>(args.streams, t);
    const A factor = -rstd * rstd / static_cast<A>(dx.size()) * dot(z, dz);
    for (A& value : dx) value *= factor;
    store_row(args.dstreams, t, dx, GradMode::accumulate);
  }
}

template <class A>
void read(const HyperRead& args) {
  const Places at(args.num_streams);
  for (int64_t t = 0; t < args.h.size(0); ++t) {
    const Row<A> x = load_row<A>(args.streams, t), c = load_row<A>(args.coefficients, t);
    Row<A> h(x.size() / at.n, A(0));
    for (size_t j = 0; j < at.n; ++j)
      for (size_t d = 0; d < h.size(); ++d) h[d] += c[at.pre(j)] * x[j * h.size() + d];
    store_row(args.h, t, h);
  }
}

template <class A>
void write(const HyperWrite& args) {
  const Places at(args.num_streams);
  for (int64_t t = 0; t < args.output.size(0); ++t) {
    const Row<A> x = load_row<A>(args.streams, t), c = load_row<A>(args.coefficients, t),
                 y = load_row<A>(args.output, t);
    Row<A> next(x.size());
    for (size_t i = 0; i < at.n; ++i)
      for (size_t d = 0; d < y.size(); ++d) {
        A sum = c[at.post(i)] * y[d];
        for (size_t j = 0; j < at.n; ++j) sum += c[at.mix(i, j)] * x[j * y.size() + d];
        next[i * y.size() + d] = sum;
      }
    store_row(args.next, t, next);
  }
}

template <class A>
void output_gradient(const HyperOutputGradient& args) {
  const Places at(args.num_streams);
  for (int64_t t = 0; t < args.dy.size(0); ++t) {
    const Row<A> dnext = load_row<A>(args.dnext, t), c = load_row<A>(args.coefficients, t);
    Row<A> dy(dnext.size() / at.n, A(0));
    for (size_t i = 0; i < at.n; ++i)
      for (size_t d = 0; d < dy.size(); ++d) dy[d] += c[at.post(i)] * dnext[i * dy.size() + d];
    store_row(args.dy, t, dy);
  }
}

template <class A>
void backward(const HyperBackward& args) {
  const Places at(args.num_streams);
  const size_t n = at.n, dim = static_cast<size_t>(args.output.size(1));
  for (int64_t t = 0; t < args.output.size(0); ++t) {
    const Row<A> x = load_row<A>(args.streams, t), c = load_row<A>(args.coefficients, t),
                 y = load_row<A>(args.output, t), dh = load_row<A>(args.dh, t), dnext = load_row<A>(args.dstreams, t);
    Row<A> dx(x.size()), dc(c.size(), A(0));
    for (size_t j = 0; j < n; ++j)
      for (size_t d = 0; d < dim; ++d) {
        dc[at.pre(j)] += dh[d] * x[j * dim + d];
        dc[at.post(j)] += dnext[j * dim + d] * y[d];
        A sum = c[at.pre(j)] * dh[d];
        for (size_t i = 0; i < n; ++i) {
          sum += c[at.mix(i, j)] * dnext[i * dim + d];
          dc[at.mix(i, j)] += dnext[i * dim + d] * (x[j * dim + d] - x[i * dim + d]);
        }
        dx[j * dim + d] = sum;
      }
    store_row(args.dstreams, t, dx);
    store_row(args.dcoefficients, t, dc);
  }
}

template <class A>
void expand(const HyperExpand& args) {
  for (int64_t t = 0; t < args.row.size(0); ++t) {
    const Row<A> row = load_row<A>(args.row, t);
    Row<A> x(static_cast<size_t>(args.streams.size(1)));
    for (size_t e = 0; e < x.size(); ++e) x[e] = static_cast<A>(args.factor) * row[e % row.size()];
    store_row(args.streams, t, x);
  }
}

template <class A>
void reduce(const HyperReduce& args) {
  for (int64_t t = 0; t < args.row.size(0); ++t) {
    const Row<A> x = load_row<A>(args.streams, t);
    Row<A> row(static_cast<size_t>(args.row.size(1)), A(0));
    for (size_t e = 0; e < x.size(); ++e) row[e % row.size()] += x[e];
    for (A& value : row) value *= static_cast<A>(args.factor);
    store_row(args.row, t, row);
  }
}

}  // namespace

void hyper_coefficients_forward(OpContext&, const HyperCoefficientsForward& args) {
  visit_acc(args.streams.dtype, [&]<class A>(A) { coefficients_forward<A>(args); });
}
void hyper_coefficients_backward(OpContext&, const HyperCoefficientsBackward& args) {
  visit_acc(args.streams.dtype, [&]<class A>(A) { coefficients_backward<A>(args); });
}
void hyper_read(OpContext&, const HyperRead& args) {
  visit_acc(args.streams.dtype, [&]<class A>(A) { read<A>(args); });
}
void hyper_write(OpContext&, const HyperWrite& args) {
  visit_acc(args.streams.dtype, [&]<class A>(A) { write<A>(args); });
}
void hyper_output_gradient(OpContext&, const HyperOutputGradient& args) {
  visit_acc(args.dnext.dtype, [&]<class A>(A) { output_gradient<A>(args); });
}
void hyper_backward(OpContext&, const HyperBackward& args) {
  visit_acc(args.streams.dtype, [&]<class A>(A) { backward<A>(args); });
}
void hyper_expand(OpContext&, const HyperExpand& args) {
  visit_acc(args.streams.dtype, [&]<class A>(A) { expand<A>(args); });
}
void hyper_reduce(OpContext&, const HyperReduce& args) {
  visit_acc(args.streams.dtype, [&]<class A>(A) { reduce<A>(args); });
}

}  // namespace lamina::ops::ref
