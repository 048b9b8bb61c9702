// What stands around Kimi Delta Attention: norms of queries and keys, gates, the gated norm of the output.
#include <functional>

#include "core/ops/kda/kda.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Every element of `input` moved, against `times` its gradient.
void expect_gradient(const TensorView& input, const TensorView& gradient, double times,
                     const std::function<double()>& loss) {
  for (int64_t i = 0; i < input.num_elements(); ++i) {
    const double before = test::get(input, i), step = 1e-3;
    const auto at = [&](double shift) {
      test::set(input, i, before + shift);
      const double value = loss();
      test::set(input, i, before);
      return value;
    };
    const double want = times * (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
    EXPECT_NEAR(test::get(gradient, i), want, 1e-8 * (1 + std::abs(want))) << input.to_string() << " " << i;
  }
}

double weighted_sum(const TensorView& a, const TensorView& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.num_elements(); ++i) sum += test::get(a, i) * test::get(b, i);
  return sum;
}

// [tokens, heads, dim] inside something wider, so that no stride is what it would be by itself.
TensorView inner(const Tensor& wide, int64_t heads, int64_t dim) {
  return wide->slice(1, 1, 1 + heads).slice(2, 3, 3 + dim);
}
Tensor outer(DType dtype, const Shape& shape, uint64_t stream, double scale = 1.0) {
  return test::normal(dtype, {shape[0], shape[1] + 2, shape[2] + 5}, stream, scale);
}

const Shape shapes[] = {{1, 1, 16}, {3, 2, 17}, {130, 3, 48}, {65, 2, 128}};

TEST(L2Norm, ReferenceIsTheFormulaAndItsDerivative) {
  TestContext context;
  const Shape shape{3, 2, 7};
  const Tensor x = test::normal(DType::f64, shape, 1), dy = test::normal(DType::f64, shape, 2),
               y = test::poisoned(DType::f64, shape), rstd = test::poisoned(DType::f64, {3, 2}),
               dx = test::poisoned(DType::f64, shape);
  const auto loss = [&] {
    l2_norm_forward(context.reference, {x, 0.3, y, rstd});
    return weighted_sum(y, dy);
  };
  loss();
  for (int64_t row = 0; row < 6; ++row) {
    double square = 0;
    for (int64_t i = 0; i < 7; ++i) square += std::pow(test::get(x, row * 7 + i), 2);
    EXPECT_NEAR(test::get(rstd, row), 1 / std::sqrt(square + 0.3), 1e-15);
    EXPECT_NEAR(test::get(y, row * 7 + 2), test::get(x, row * 7 + 2) / std::sqrt(square + 0.3), 1e-15);
  }
  l2_norm_backward(context.reference, {y, rstd, dy, dx});
  expect_gradient(x, dx, 1, loss);
}

TEST(L2Norm, FastestMatchesFloat64) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Shape& shape : shapes) {
      const Tensor wide = outer(dtype, shape, 1, 2.0), dy = test::normal(dtype, shape, 2),
                   y = test::poisoned(dtype, shape), rstd = test::poisoned(DType::f32, {shape[0], shape[1]}),
                   dx = test::poisoned(dtype, shape);
      const TensorView x = inner(wide, shape[1], shape[2]);
      {
        test::Mirror m;
        l2_norm_forward(context.reference, {m(x), 1e-6, m(y), m(rstd)});
        l2_norm_forward(context.fastest, {x, 1e-6, y, rstd});
        EXPECT_MIRRORED(m, y, shape[2]);
        EXPECT_MIRRORED(m, rstd, shape[2]);
      }
      test::Mirror m;
      l2_norm_backward(context.reference, {m(y), m(rstd), m(dy), m(dx)});
      l2_norm_backward(context.fastest, {y, rstd, dy, dx});
      EXPECT_MIRRORED(m, dx, shape[2]);
      l2_norm_backward(context.fastest, {y, rstd, dy, dy});
      EXPECT_EQ(test::values(dy), test::values(dx));
      const auto want = test::values(y);
      l2_norm_forward(context.fastest, {x, 1e-6, x, rstd});
      EXPECT_EQ(test::values(x), want);
    }
  }
}

TEST(L2Norm, RefusesWhatDoesNotFit) {
  TestContext context;
  const Tensor x = test::zeros(DType::f32, {3, 2, 4}), rstd = test::zeros(DType::f32, {3, 2}),
               wrong = test::zeros(DType::f32, {3, 2, 5}), bf = test::zeros(DType::bf16, {3, 2});
  EXPECT_THROW(l2_norm_forward(context.fastest, {x, 1e-6, wrong, rstd}), InternalError);
  EXPECT_THROW(l2_norm_forward(context.fastest, {x, 1e-6, x, bf}), InternalError);
  EXPECT_THROW(l2_norm_forward(context.fastest, {rstd, 1e-6, rstd, rstd}), InternalError);
  EXPECT_THROW(l2_norm_backward(context.fastest, {x, rstd, wrong, x}), InternalError);
  EXPECT_THROW(l2_norm_backward(context.fastest, {x, rstd, x, {}}), InternalError);
}

std::vector<std::optional<double>> bounds() {
  return {std::nullopt, -5.0};
}

struct Gate {
  Gate(DType dtype, const Shape& shape, double scale)
      : wide(outer(dtype, shape, 1, scale)),
        dt_bias(test::normal(accumulation_dtype(dtype), {shape[1], shape[2]}, 2)),
        a_log(test::normal(accumulation_dtype(dtype), {shape[1]}, 3, 0.7)),
        wide_logits(test::normal(dtype, {shape[0], shape[1] + 4}, 4, scale)),
        g(test::poisoned(accumulation_dtype(dtype), shape)),
        beta(test::poisoned(accumulation_dtype(dtype), {shape[0], shape[1]})),
        dg(test::normal(accumulation_dtype(dtype), shape, 5)),
        dbeta(test::normal(accumulation_dtype(dtype), {shape[0], shape[1]}, 6)),
        df(test::poisoned(dtype, shape)),
        dlogits(test::poisoned(dtype, {shape[0], shape[1]})),
        d_dt_bias(test::zeros(accumulation_dtype(dtype), {shape[1], shape[2]})),
        d_a_log(test::zeros(accumulation_dtype(dtype), {shape[1]})),
        f(inner(wide, shape[1], shape[2])),
        logits(wide_logits->slice(1, 2, 2 + shape[1])) {}
  KdaGateForward forward(std::optional<double> bound) const { return {f, dt_bias, a_log, bound, logits, g, beta}; }
  KdaGateBackward backward(std::optional<double> bound) const {
    return {f, dt_bias, a_log, bound, beta, dg, dbeta, df, dlogits, d_dt_bias, d_a_log};
  }

  Tensor wide, dt_bias, a_log, wide_logits, g, beta, dg, dbeta, df, dlogits, d_dt_bias, d_a_log;
  TensorView f, logits;
};

TEST(KdaGate, ReferenceIsTheFormulaAndItsDerivative) {
  TestContext context;
  const int64_t heads = 2, d_k = 5;
  for (const auto& bound : bounds()) {
    const Gate gate(DType::f64, {3, heads, d_k}, 1.5);
    const auto loss = [&] {
      kda_gate_forward(context.reference, gate.forward(bound));
      return weighted_sum(gate.g, gate.dg) + weighted_sum(gate.beta, gate.dbeta);
    };
    loss();
    for (int64_t n = 0; n < gate.f.num_elements(); ++n) {
      const double rate = std::exp(test::get(gate.a_log, n / d_k % heads));
      const double x = test::get(gate.f, n) + test::get(gate.dt_bias, n % (heads * d_k));
      const double want = bound ? *bound / (1 + std::exp(-rate * x)) : -rate * std::log(1 + std::exp(x));
      EXPECT_NEAR(test::get(gate.g, n), want, 1e-14 * (1 + std::abs(want)));
    }
    for (int64_t n = 0; n < gate.logits.num_elements(); ++n) {
      EXPECT_NEAR(test::get(gate.beta, n), 1 / (1 + std::exp(-test::get(gate.logits, n))), 1e-15);
    }
    for (int i = 0; i < 2; ++i) kda_gate_backward(context.reference, gate.backward(bound));
    expect_gradient(gate.f, gate.df, 1, loss);
    expect_gradient(gate.logits, gate.dlogits, 1, loss);
    expect_gradient(gate.dt_bias, gate.d_dt_bias, 2, loss);  // accumulated twice
    expect_gradient(gate.a_log, gate.d_a_log, 2, loss);
  }
}

TEST(KdaGate, FastestMatchesFloat64) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& bound : bounds()) {
      for (const Shape& shape : shapes) {
        const Gate gate(dtype, shape, 4.0);
        test::Mirror m;
        const auto mirrored = [&] {
          return KdaGateForward{m(gate.f),      m(gate.dt_bias), m(gate.a_log), bound,
                                m(gate.logits), m(gate.g),       m(gate.beta)};
        };
        kda_gate_forward(context.reference, mirrored());
        kda_gate_forward(context.fastest, gate.forward(bound));
        EXPECT_MIRRORED(m, gate.g, 8);
        EXPECT_MIRRORED(m, gate.beta, 8);
        for (int i = 0; i < 2; ++i) {
          kda_gate_backward(context.reference,
                            {m(gate.f), m(gate.dt_bias), m(gate.a_log), bound, m(gate.beta), m(gate.dg), m(gate.dbeta),
                             m(gate.df), m(gate.dlogits), m(gate.d_dt_bias), m(gate.d_a_log)});
          kda_gate_backward(context.fastest, gate.backward(bound));
        }
        const auto rows = static_cast<double>(shape[0]);
        EXPECT_MIRRORED(m, gate.df, 8);
        EXPECT_MIRRORED(m, gate.dlogits, 8);
        EXPECT_MIRRORED(m, gate.d_dt_bias, 2 * shape[0], std::sqrt(rows));
        EXPECT_MIRRORED(m, gate.d_a_log, 2 * shape[0] * shape[2], std::sqrt(rows * static_cast<double>(shape[2])));
      }
    }
  }
}

// Every element on its own, over the whole range: nothing overflows, and small decays keep their relative accuracy.
TEST(KdaGate, IsAccurateEverywhere) {
  TestContext context;
  const int64_t count = 4001;
  const auto row = [&](double fill) {
    Tensor out = test::zeros(DType::f32, {1, 1, count});
    test::fill(out, fill);
    return out;
  };
  const Tensor f = row(0), g = row(NAN), dg = row(1), df = row(NAN), bias = test::zeros(DType::f32, {1, count}),
               a_log = test::zeros(DType::f32, {1}), logit = test::zeros(DType::f32, {1, 1}),
               beta = test::zeros(DType::f32, {1, 1}), dlogit = test::zeros(DType::f32, {1, 1}),
               dbias = test::zeros(DType::f32, {1, count});
  test::set(a_log, 0, std::log(2.0));
  for (int64_t i = 0; i < count; ++i) test::set(f, i, -80 + 160.0 * static_cast<double>(i) / (count - 1));
  const double rate = std::exp(test::get(a_log, 0)), eps = test::epsilon_of(DType::f32);
  for (const auto& bound : bounds()) {
    kda_gate_forward(context.fastest, {f, bias, a_log, bound, logit, g, beta});
    kda_gate_backward(context.fastest, {f, bias, a_log, bound, beta, dg, beta, df, dlogit, dbias, a_log});
    test::set(a_log, 0, std::log(2.0));
    for (int64_t i = 0; i < count; ++i) {
      const double x = test::get(f, i), s = 1 / (1 + std::exp(-(bound ? rate * x : x)));
      const double want = bound ? *bound * s : -rate * std::log1p(std::exp(x));
      const double slope = bound ? *bound * s * (1 - s) * rate : -rate * s;
      // exp(rate x) turns the rounding of rate x into a relative error.
      const double room = (16 + 2 * std::abs(rate * x)) * eps;
      EXPECT_NEAR(test::get(g, i), want, room * std::abs(want) + 1e-35) << x;
      EXPECT_NEAR(test::get(df, i), slope, room * std::abs(bound ? *bound * s * rate : slope) + 1e-35) << x;
    }
  }
}

TEST(KdaGate, RefusesWhatDoesNotFit) {
  TestContext context;
  const Gate gate(DType::f32, {3, 2, 16}, 1.0);
  const Tensor wrong = test::zeros(DType::f32, {3, 3, 16}), bf = test::zeros(DType::bf16, {3, 2, 16});
  const auto forward = [&](auto&& change) {
    KdaGateForward args = gate.forward(-5.0);
    change(args);
    EXPECT_THROW(kda_gate_forward(context.fastest, args), InternalError);
  };
  forward([](KdaGateForward& a) { a.lower_bound = 0.5; });
  forward([&](KdaGateForward& a) { a.f = wrong; });
  forward([&](KdaGateForward& a) { a.g = bf; });
  forward([&](KdaGateForward& a) { a.dt_bias = {}; });
  forward([&](KdaGateForward& a) { a.beta_logits = gate.beta->transposed(); });
  forward([&](KdaGateForward& a) { a.beta = gate.dt_bias; });
  const auto backward = [&](auto&& change) {
    KdaGateBackward args = gate.backward(-5.0);
    change(args);
    EXPECT_THROW(kda_gate_backward(context.fastest, args), InternalError);
  };
  backward([&](KdaGateBackward& a) { a.df = bf; });
  backward([&](KdaGateBackward& a) { a.dg = wrong; });
  backward([&](KdaGateBackward& a) { a.d_a_log = gate.dt_bias; });
  backward([&](KdaGateBackward& a) { a.d_dt_bias = {}; });
  backward([&](KdaGateBackward& a) { a.dbeta_logits = wrong; });
}

TEST(GatedRmsNorm, ReferenceIsTheFormulaAndItsDerivative) {
  TestContext context;
  const Shape shape{3, 2, 7};
  const Tensor o = test::normal(DType::f64, shape, 1), weight = test::normal(DType::f64, {7}, 2),
               gate = test::normal(DType::f64, shape, 3), dy = test::normal(DType::f64, shape, 4),
               y = test::poisoned(DType::f64, shape), rstd = test::poisoned(DType::f64, {3, 2}),
               d_o = test::poisoned(DType::f64, shape), dgate = test::poisoned(DType::f64, shape),
               dweight = test::zeros(DType::f64, {7}), again = test::poisoned(DType::f64, shape);
  const auto loss = [&] {
    gated_rms_norm_forward(context.reference, {o, weight, gate, 0.2, y, rstd});
    return weighted_sum(y, dy);
  };
  loss();
  for (int64_t n = 0; n < y->num_elements(); ++n) {
    double square = 0;
    for (int64_t i = 0; i < 7; ++i) square += std::pow(test::get(o, n / 7 * 7 + i), 2);
    const double want =
        test::get(o, n) / std::sqrt(square / 7 + 0.2) * test::get(weight, n % 7) / (1 + std::exp(-test::get(gate, n)));
    EXPECT_NEAR(test::get(y, n), want, 1e-14);
  }
  for (int i = 0; i < 2; ++i) {
    gated_rms_norm_backward(context.reference, {o, weight, gate, rstd, dy, d_o, dgate, dweight, again});
  }
  EXPECT_EQ(test::values(again), test::values(y));
  expect_gradient(o, d_o, 1, loss);
  expect_gradient(gate, dgate, 1, loss);
  expect_gradient(weight, dweight, 2, loss);  // accumulated twice
}

TEST(GatedRmsNorm, FastestMatchesFloat64) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Shape& shape : shapes) {
      const Tensor wide = outer(dtype, shape, 1, 2.0), wide_gate = outer(dtype, shape, 2, 3.0),
                   weight = test::normal(DType::f32, {shape[2]}, 3), dy = test::normal(dtype, shape, 4),
                   y = test::poisoned(dtype, shape), again = test::poisoned(dtype, shape),
                   rstd = test::poisoned(DType::f32, {shape[0], shape[1]}), d_o = test::poisoned(dtype, shape),
                   dgate = test::poisoned(dtype, shape), dweight = test::zeros(DType::f32, {shape[2]});
      const TensorView o = inner(wide, shape[1], shape[2]), gate = inner(wide_gate, shape[1], shape[2]);
      {
        test::Mirror m;
        gated_rms_norm_forward(context.reference, {m(o), m(weight), m(gate), 1e-5, m(y), m(rstd)});
        gated_rms_norm_forward(context.fastest, {o, weight, gate, 1e-5, y, rstd});
        EXPECT_MIRRORED(m, y, shape[2]);
        EXPECT_MIRRORED(m, rstd, shape[2]);
      }
      test::Mirror m;
      for (int i = 0; i < 2; ++i) {
        gated_rms_norm_backward(context.reference,
                                {m(o), m(weight), m(gate), m(rstd), m(dy), m(d_o), m(dgate), m(dweight), {}});
        gated_rms_norm_backward(context.fastest, {o, weight, gate, rstd, dy, d_o, dgate, dweight, again});
      }
      EXPECT_MIRRORED(m, d_o, shape[2]);
      EXPECT_MIRRORED(m, dgate, shape[2]);
      const int64_t rows = shape[0] * shape[1];
      EXPECT_MIRRORED(m, dweight, 2 * rows, std::sqrt(static_cast<double>(rows)));
      EXPECT_EQ(test::values(again), test::values(y));
      gated_rms_norm_backward(context.fastest, {o, weight, gate, rstd, dy, dy, dgate, dweight, {}});  // in place
      EXPECT_EQ(test::values(dy), test::values(d_o));
    }
  }
}

TEST(GatedRmsNorm, RefusesWhatDoesNotFit) {
  TestContext context;
  const Tensor o = test::zeros(DType::f32, {3, 2, 8}), weight = test::zeros(DType::f32, {8}),
               rstd = test::zeros(DType::f32, {3, 2}), wrong = test::zeros(DType::f32, {3, 2, 9}),
               bf = test::zeros(DType::bf16, {3, 2, 8}), y = test::zeros(DType::f32, {3, 2, 8});
  EXPECT_THROW(gated_rms_norm_forward(context.fastest, {o, rstd, o, 1e-5, y, rstd}), InternalError);
  EXPECT_THROW(gated_rms_norm_forward(context.fastest, {o, weight, bf, 1e-5, y, rstd}), InternalError);
  EXPECT_THROW(gated_rms_norm_forward(context.fastest, {o, weight, o, 1e-5, wrong, rstd}), InternalError);
  EXPECT_THROW(gated_rms_norm_forward(context.fastest, {o, weight, o, 1e-5, y, {}}), InternalError);
  EXPECT_THROW(gated_rms_norm_backward(context.fastest, {o, weight, o, rstd, wrong, y, y, weight, {}}), InternalError);
  EXPECT_THROW(gated_rms_norm_backward(context.fastest, {o, weight, o, rstd, o, bf, y, weight, {}}), InternalError);
  EXPECT_THROW(gated_rms_norm_backward(context.fastest, {o, weight, o, rstd, o, y, wrong, weight, {}}), InternalError);
  EXPECT_THROW(gated_rms_norm_backward(context.fastest, {o, weight, o, rstd, o, y, y, rstd, {}}), InternalError);
  EXPECT_THROW(gated_rms_norm_backward(context.fastest, {o, weight, o, rstd, o, y, y, weight, wrong}), InternalError);
}

}  // namespace
}  // namespace lamina::ops
