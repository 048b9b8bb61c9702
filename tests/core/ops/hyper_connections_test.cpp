#include "core/ops/hyper_connections/hyper_connections.h"

#include <numeric>

#include "core/ops/hyper_connections/implementations.h"
#include "core/ops/matmul/matmul.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Operands of one sublayer away from special points, and everything that the operations write.
struct Operands {
  Operands(DType dtype, int64_t num_streams, int64_t tokens, int64_t dim)
      : n(num_streams),
        acc(accumulation_dtype(dtype)),
        x(test::normal(dtype, {tokens, n * dim}, 1, 1.5)),
        y(test::normal(dtype, {tokens, dim}, 2)),
        weight(test::normal(acc, {num_projections(n), n * dim}, 3, 1.0 / std::sqrt(static_cast<double>(n * dim)))),
        alpha(test::normal(acc, {3}, 4)),
        bias(test::normal(acc, {num_projections(n)}, 5)),
        z(test::poisoned(acc, {tokens, num_projections(n)})),
        rstd(test::poisoned(acc, {tokens})),
        coefficients(test::poisoned(acc, {tokens, num_coefficients(n)})),
        h(test::poisoned(dtype, {tokens, dim})),
        next(test::poisoned(dtype, {tokens, n * dim})),
        dstreams(test::normal(acc, {tokens, n * dim}, 6)),
        dh(test::normal(acc, {tokens, dim}, 7)),
        dy(test::poisoned(dtype, {tokens, dim})),
        dcoefficients(test::poisoned(acc, {tokens, num_coefficients(n)})),
        dz(test::poisoned(acc, {tokens, num_projections(n)})),
        dalpha(test::zeros(acc, {3})),
        dbias(test::zeros(acc, {num_projections(n)})) {}

  HyperCoefficientsForward made() const { return {x, z, alpha, bias, n, eps, rstd, coefficients}; }
  HyperRead read() const { return {x, coefficients, n, h}; }
  HyperWrite write() const { return {x, coefficients, n, y, next}; }
  HyperOutputGradient output_gradient() const { return {dstreams, coefficients, n, dy}; }
  HyperBackward backward() const { return {x, coefficients, n, y, dh, dstreams, dcoefficients}; }
  HyperCoefficientsBackward made_backward() const {
    return {x, z, alpha, bias, n, rstd, coefficients, dcoefficients, dz, dstreams, dalpha, dbias};
  }

  static constexpr double eps = 1e-3;
  int64_t n;
  DType acc;
  Tensor x, y, weight, alpha, bias, z, rstd, coefficients, h, next, dstreams, dh, dy, dcoefficients, dz, dalpha, dbias;
};

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

TEST(HyperConnections, PermutationsComeInLexicographicOrder) {
  EXPECT_EQ(num_projections(4), 32);
  EXPECT_EQ(num_coefficients(4), 24);
  ASSERT_EQ(permutations(2).size(), 2u);
  ASSERT_EQ(permutations(3).size(), 6u);
  ASSERT_EQ(permutations(4).size(), 24u);
  EXPECT_EQ(permutations(4)[0], (Permutation{0, 1, 2, 3}));
  EXPECT_EQ(permutations(4)[1], (Permutation{0, 1, 3, 2}));
  EXPECT_EQ(permutations(4)[23], (Permutation{3, 2, 1, 0}));
  EXPECT_EQ(permutations(3)[3], (Permutation{1, 2, 0, 3}));
}

// Whatever the parameters, H_res is doubly stochastic; and all coefficients are those of the equations.
TEST(HyperConnections, CoefficientsAreTheEquations) {
  TestContext context;
  for (const int64_t n : {2, 3, 4}) {
    const int64_t dim = 5, tokens = 3;
    const Operands o(DType::f64, n, tokens, dim);
    linear(context.reference, o.x, o.weight, o.z);
    hyper_coefficients_forward(context.reference, o.made());
    for (int64_t t = 0; t < tokens; ++t) {
      double square = 0;
      for (int64_t e = 0; e < n * dim; ++e) square += std::pow(test::get(o.x, t * n * dim + e), 2);
      const double rstd = 1 / std::sqrt(square / static_cast<double>(n * dim) + Operands::eps);
      const auto logit = [&](int64_t row, int64_t gate) {
        double sum = 0;  // of x' W^T
        for (int64_t e = 0; e < n * dim; ++e)
          sum += test::get(o.x, t * n * dim + e) * rstd * test::get(o.weight, row * n * dim + e);
        return test::get(o.alpha, gate) * sum + test::get(o.bias, row);
      };
      const auto found = [&](int64_t at) { return test::get(o.coefficients, t * num_coefficients(n) + at); };
      for (int64_t j = 0; j < n; ++j) {
        EXPECT_NEAR(found(j), sigmoid(logit(j, 0)), 1e-14);
        EXPECT_NEAR(found(n + j), 2 * sigmoid(logit(n + j, 1)), 1e-14);
      }
      std::vector<double> mix(static_cast<size_t>(n * n), 0.0);
      std::vector<int> order(static_cast<size_t>(n));
      std::iota(order.begin(), order.end(), 0);
      double total = 0;
      int64_t row = 2 * n;
      do {
        const double weight = std::exp(logit(row++, 2));
        total += weight;
        for (size_t i = 0; i < order.size(); ++i) mix[i * order.size() + static_cast<size_t>(order[i])] += weight;
      } while (std::next_permutation(order.begin(), order.end()));
      for (int64_t i = 0; i < n; ++i) {
        double of_row = 0, of_column = 0;
        for (int64_t j = 0; j < n; ++j) {
          EXPECT_NEAR(found(2 * n + i * n + j), mix[static_cast<size_t>(i * n + j)] / total, 1e-14);
          of_row += found(2 * n + i * n + j);
          of_column += found(2 * n + j * n + i);
        }
        EXPECT_NEAR(of_row, 1, 1e-15 * 8);
        EXPECT_NEAR(of_column, 1, 1e-15 * 8);
      }
    }
  }
}

TEST(HyperConnections, StreamsAreTheEquations) {
  TestContext context;
  const int64_t n = 3, dim = 4, tokens = 2;
  const Operands o(DType::f64, n, tokens, dim);
  test::fill_normal(o.coefficients, 9);
  hyper_read(context.reference, o.read());
  hyper_write(context.reference, o.write());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t d = 0; d < dim; ++d) {
      const auto x = [&](int64_t j) { return test::get(o.x, (t * n + j) * dim + d); };
      const auto c = [&](int64_t at) { return test::get(o.coefficients, t * num_coefficients(n) + at); };
      double h = 0;
      for (int64_t j = 0; j < n; ++j) h += c(j) * x(j);
      EXPECT_NEAR(test::get(o.h, t * dim + d), h, 1e-14);
      for (int64_t i = 0; i < n; ++i) {
        double next = c(n + i) * test::get(o.y, t * dim + d);
        for (int64_t j = 0; j < n; ++j) next += c(2 * n + i * n + j) * x(j);
        EXPECT_NEAR(test::get(o.next, (t * n + i) * dim + d), next, 1e-14);
      }
    }
  const Tensor row = test::normal(DType::f64, {tokens, dim}, 8), all = test::poisoned(DType::f64, {tokens, n * dim}),
               back = test::poisoned(DType::f64, {tokens, dim});
  hyper_expand(context.reference, {row, 0.5, all});
  hyper_reduce(context.reference, {all, 2.0 / 3, back});
  EXPECT_EQ(test::get(all, dim + 1), 0.5 * test::get(row, 1));
  EXPECT_LT(test::relative_error(back, row), 1e-15);
}

// The whole of a sublayer's connection, y given: <next, dnext> + <h, dh> as a function of everything that goes in.
TEST(HyperConnections, GradientsFollowFiniteDifferences) {
  TestContext context;
  for (const int64_t n : {2, 3, 4}) {
    const int64_t dim = 3, tokens = 2;
    const Operands o(DType::f64, n, tokens, dim);
    const Tensor dnext = test::to(DType::f64, o.dstreams), dweight = test::zeros(DType::f64, o.weight->shape);
    const auto objective = [&] {
      linear(context.reference, o.x, o.weight, o.z);
      hyper_coefficients_forward(context.reference, o.made());
      hyper_read(context.reference, o.read());
      hyper_write(context.reference, o.write());
      double sum = 0;
      for (int64_t e = 0; e < dnext->num_elements(); ++e) sum += test::get(o.next, e) * test::get(dnext, e);
      for (int64_t e = 0; e < o.h->num_elements(); ++e) sum += test::get(o.h, e) * test::get(o.dh, e);
      return sum;
    };
    objective();
    hyper_output_gradient(context.reference, o.output_gradient());
    hyper_backward(context.reference, o.backward());
    hyper_coefficients_backward(context.reference, o.made_backward());
    linear_input_gradient(context.reference, o.dz, o.weight, o.dstreams, GradMode::accumulate);
    linear_weight_gradient(context.reference, o.dz, o.x, dweight);
    const std::vector<std::tuple<const char*, TensorView, TensorView>> pairs = {{"x", o.x, o.dstreams},
                                                                                {"y", o.y, o.dy},
                                                                                {"W", o.weight, dweight},
                                                                                {"alpha", o.alpha, o.dalpha},
                                                                                {"b", o.bias, o.dbias}};
    const double h = 1e-5;
    for (const auto& [name, value, gradient] : pairs)
      for (int64_t e = 0; e < value.num_elements(); ++e) {
        const double before = test::get(value, e);
        test::set(value, e, before + h);
        const double above = objective();
        test::set(value, e, before - h);
        const double below = objective();
        test::set(value, e, before);
        EXPECT_NEAR(test::get(gradient, e), (above - below) / (2 * h), 2e-8) << name << " " << e << ", n " << n;
      }
  }
}

TEST(HyperConnections, FastestMatchesFloat64) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int64_t n : {2, 3, 4})
      for (const int64_t tokens : {1, 70})
        for (const int64_t dim : {1, 16, 37}) {
          const Operands o(dtype, n, tokens, dim);
          test::fill_normal(o.z, 8, 2.0);
          test::fill(o.dbias, 0.5);
          test::fill(o.dalpha, 0.5);
          test::Mirror m;
          const auto mirrored = [&](const HyperCoefficientsBackward& a) {
            return HyperCoefficientsBackward{
                m(a.streams),      m(a.projected),     m(a.alpha),      m(a.bias),     n,           m(a.rstd),
                m(a.coefficients), m(a.dcoefficients), m(a.dprojected), m(a.dstreams), m(a.dalpha), m(a.dbias)};
          };
          hyper_coefficients_forward(context.reference, {m(o.x), m(o.z), m(o.alpha), m(o.bias), n, Operands::eps,
                                                         m(o.rstd), m(o.coefficients)});
          hyper_read(context.reference, {m(o.x), m(o.coefficients), n, m(o.h)});
          hyper_write(context.reference, {m(o.x), m(o.coefficients), n, m(o.y), m(o.next)});
          hyper_output_gradient(context.reference, {m(o.dstreams), m(o.coefficients), n, m(o.dy)});
          hyper_backward(context.reference,
                         {m(o.x), m(o.coefficients), n, m(o.y), m(o.dh), m(o.dstreams), m(o.dcoefficients)});
          hyper_coefficients_backward(context.reference, mirrored(o.made_backward()));

          hyper_coefficients_forward(context.fastest, o.made());
          hyper_read(context.fastest, o.read());
          hyper_write(context.fastest, o.write());
          hyper_output_gradient(context.fastest, o.output_gradient());
          hyper_backward(context.fastest, o.backward());
          hyper_coefficients_backward(context.fastest, o.made_backward());
          EXPECT_MIRRORED(m, o.rstd, n * dim);
          EXPECT_MIRRORED(m, o.coefficients, n * dim);
          EXPECT_MIRRORED(m, o.h, n, 2.0);
          EXPECT_MIRRORED(m, o.next, n * n, 2.0);
          EXPECT_MIRRORED(m, o.dy, n, 2.0);
          EXPECT_MIRRORED(m, o.dcoefficients, n * dim, std::sqrt(static_cast<double>(dim)));
          EXPECT_MIRRORED(m, o.dz, n * dim, std::sqrt(static_cast<double>(dim)));
          EXPECT_MIRRORED(m, o.dstreams, n * dim, 2.0);
          EXPECT_MIRRORED(m, o.dalpha, tokens * dim, std::sqrt(static_cast<double>(tokens * dim)));
          EXPECT_MIRRORED(m, o.dbias, tokens * dim, std::sqrt(static_cast<double>(tokens * dim)));

          const Tensor all = test::poisoned(dtype, {tokens, n * dim}), row = test::poisoned(dtype, {tokens, dim});
          hyper_expand(context.reference, {m(o.y), 0.7, m(all)});
          hyper_expand(context.fastest, {o.y, 0.7, all});
          EXPECT_MIRRORED(m, all, 1);
          hyper_reduce(context.reference, {m(o.x), 0.3, m(row)});
          hyper_reduce(context.fastest, {o.x, 0.3, row});
          EXPECT_MIRRORED(m, row, n, 1.0);
        }
}

TEST(HyperConnections, RefusesWhatDoesNotFit) {
  TestContext context;
  const Operands o(DType::f32, 4, 3, 6), other(DType::f32, 3, 3, 6);
  EXPECT_THROW(hyper_read(context.fastest, {o.x, o.coefficients, 1, o.h}), InternalError);
  EXPECT_THROW(hyper_read(context.fastest, {o.x, o.coefficients, 5, o.h}), InternalError);
  EXPECT_THROW(hyper_read(context.fastest, {o.x, other.coefficients, 4, o.h}), InternalError);
  EXPECT_THROW(hyper_write(context.fastest, {o.x, o.coefficients, 4, o.y, o.x}), InternalError);
  EXPECT_THROW(hyper_expand(context.fastest, {o.h, 1.0, test::zeros(DType::f32, {3, 10})}), InternalError);
  EXPECT_THROW(permutations(5), InternalError);
  EXPECT_EQ(cpu::hyper_read_refuses(o.read()), nullptr);
  EXPECT_NE(cpu::hyper_read_refuses(Operands(DType::f64, 2, 1, 2).read()), nullptr);
}

}  // namespace
}  // namespace lamina::ops
