#include "core/ops/swiglu/swiglu.h"

#include "core/ops/swiglu/implementations.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

TEST(Swiglu, ReferenceIsTheFormulaAndItsDerivative) {
  TestContext context;
  const int64_t width = 7;
  const Tensor gate_up = test::normal(DType::f64, {2, 2 * width}, 1, 2.0), dy = test::normal(DType::f64, {2, width}, 2),
               y = test::poisoned(DType::f64, {2, width}), d = test::poisoned(DType::f64, {2, 2 * width}),
               again = test::poisoned(DType::f64, {2, width});
  swiglu_forward(context.fastest, {gate_up, y});
  swiglu_backward(context.fastest, {gate_up, dy, d, again});
  EXPECT_EQ(test::values(y), test::values(again));
  const auto value = [](double z, double u) { return z / (1 + std::exp(-z)) * u; };
  for (int64_t t = 0; t < 2; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const double z = test::get(gate_up, t * 2 * width + i), u = test::get(gate_up, t * 2 * width + width + i);
      const double g = test::get(dy, t * width + i), h = 1e-3;
      EXPECT_NEAR(test::get(y, t * width + i), value(z, u), 1e-15 * (1 + std::abs(value(z, u))));
      const auto slope = [&](double dz, double du) {
        const auto at = [&](double s) { return value(z + s * dz, u + s * du); };
        return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
      };
      EXPECT_NEAR(test::get(d, t * 2 * width + i), g * slope(1, 0), 1e-10);
      EXPECT_NEAR(test::get(d, t * 2 * width + width + i), g * slope(0, 1), 1e-10);
    }
  }
}

TEST(Swiglu, FastestMatchesFloat64) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t tokens : {1, 3, 64, 130}) {
      for (const int64_t width : {8, 17, 64, 200}) {
        const Tensor gate_up = test::normal(dtype, {tokens, 2 * width}, 1, 4.0),
                     dy = test::normal(dtype, {tokens, width}, 2), y = test::poisoned(dtype, {tokens, width}),
                     d = test::poisoned(dtype, {tokens, 2 * width}), again = test::poisoned(dtype, {tokens, width});
        test::Mirror m;
        swiglu_forward(context.reference, {m(gate_up), m(y)});
        swiglu_forward(context.fastest, {gate_up, y});
        EXPECT_MIRRORED(m, y, 1);
        swiglu_backward(context.reference, {m(gate_up), m(dy), m(d), {}});
        swiglu_backward(context.fastest, {gate_up, dy, d, again});
        EXPECT_MIRRORED(m, d, 1);
        EXPECT_EQ(test::values(y), test::values(again));
        const auto want = test::values(d);
        test::poison(d);
        swiglu_backward(context.fastest, {gate_up, dy, d, {}});
        EXPECT_EQ(test::values(d), want);
        swiglu_backward(context.fastest, {gate_up, dy, gate_up, {}});  // in place
        EXPECT_EQ(test::values(gate_up), want);
      }
    }
  }
}

// Every element on its own, over the whole range of the exponential.
TEST(Swiglu, SigmoidIsAccurateEverywhere) {
  TestContext context;
  const int64_t count = 20001;
  const Tensor gate_up = test::zeros(DType::f32, {1, 2 * count}), y = test::poisoned(DType::f32, {1, count});
  for (int64_t i = 0; i < count; ++i) {
    test::set(gate_up, i, -100 + 200.0 * static_cast<double>(i) / (count - 1));
    test::set(gate_up, count + i, 1.0);
  }
  swiglu_forward(context.fastest, {gate_up, y});
  for (int64_t i = 0; i < count; ++i) {
    const double z = test::get(gate_up, i), want = z / (1 + std::exp(-z));
    EXPECT_NEAR(test::get(y, i), want, 6 * test::epsilon_of(DType::f32) * std::abs(want) + 1e-35) << z;
  }
}

// y = w silu(gate) up: the gradients of gate and up carry w, that of w is the sum over the row.
TEST(Swiglu, RowWeightsFollowFiniteDifferences) {
  TestContext context;
  const int64_t width = 5;
  const Tensor gate_up = test::normal(DType::f64, {3, 2 * width}, 1), dy = test::normal(DType::f64, {3, width}, 2),
               weight = test::normal(DType::f64, {3}, 3), y = test::poisoned(DType::f64, {3, width}),
               d = test::poisoned(DType::f64, {3, 2 * width}), dweight = test::poisoned(DType::f64, {3});
  swiglu_backward(context.fastest, {gate_up, dy, d, {}, weight, dweight});
  const auto objective = [&] {
    swiglu_forward(context.fastest, {gate_up, y, weight});
    double sum = 0;
    for (int64_t n = 0; n < y->num_elements(); ++n) sum += test::get(y, n) * test::get(dy, n);
    return sum;
  };
  const double h = 1e-6;
  const std::vector<std::pair<TensorView, TensorView>> pairs = {{gate_up, d}, {weight, dweight}};
  for (const auto& [x, dx] : pairs) {
    for (int64_t n = 0; n < x.num_elements(); ++n) {
      const double value = test::get(x, n);
      test::set(x, n, value + h);
      const double above = objective();
      test::set(x, n, value - h);
      const double below = objective();
      test::set(x, n, value);
      EXPECT_NEAR(test::get(dx, n), (above - below) / (2 * h), 1e-8);
    }
  }
}

TEST(Swiglu, RowWeightsMatchFloat64AndOnesChangeNothing) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t width : {1, 17, 64, 130}) {
      const int64_t tokens = 19;
      const Tensor gate_up = test::normal(dtype, {tokens, 2 * width}, 1, 4.0),
                   dy = test::normal(dtype, {tokens, width}, 2), weight = test::normal(DType::f32, {tokens}, 3),
                   y = test::poisoned(dtype, {tokens, width}), again = test::poisoned(dtype, {tokens, width}),
                   d = test::poisoned(dtype, {tokens, 2 * width}), dweight = test::poisoned(DType::f32, {tokens}),
                   ones = test::zeros(DType::f32, {tokens});
      test::Mirror m;
      swiglu_forward(context.reference, {m(gate_up), m(y), m(weight)});
      swiglu_backward(context.reference, {m(gate_up), m(dy), m(d), {}, m(weight), m(dweight)});
      swiglu_forward(context.fastest, {gate_up, y, weight});
      swiglu_backward(context.fastest, {gate_up, dy, d, again, weight, dweight});
      EXPECT_MIRRORED(m, y, 1);
      EXPECT_MIRRORED(m, d, 1);
      EXPECT_MIRRORED(m, dweight, width);
      EXPECT_EQ(test::values(y), test::values(again));
      test::fill(ones, 1.0);
      swiglu_forward(context.fastest, {gate_up, y, ones});
      swiglu_forward(context.fastest, {gate_up, again});
      EXPECT_EQ(test::values(y), test::values(again));
      swiglu_backward(context.fastest, {gate_up, dy, d, y, ones, dweight});
      const auto want = test::values(d);
      test::poison(d);
      swiglu_backward(context.fastest, {gate_up, dy, d, {}});
      EXPECT_EQ(test::values(d), want);
    }
  }
}

TEST(Swiglu, RowsOfWiderMatricesAndNoTokens) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t width : {16, 19, 2100}) {
      const int64_t tokens = 5;
      const Tensor wide = test::normal(dtype, {tokens, 2 * width + 3}, 1),
                   wide_dy = test::normal(dtype, {tokens, width + 8}, 2),
                   weight = test::normal(DType::f32, {tokens}, 3), y = test::poisoned(dtype, {tokens, width + 1}),
                   d = test::poisoned(dtype, {tokens, 2 * width}), dweight = test::poisoned(DType::f32, {tokens}),
                   again = test::poisoned(dtype, {tokens, width});
      const TensorView gate_up = wide->slice(1, 3, 2 * width + 3), dy = wide_dy->slice(1, 8, width + 8),
                       out = y->slice(1, 1, width + 1);
      test::Mirror m;
      swiglu_backward(context.reference, {m(gate_up), m(dy), m(d), m(again), m(weight), m(dweight)});
      swiglu_forward(context.fastest, {gate_up, out, weight});
      swiglu_backward(context.fastest, {gate_up, dy, d, again, weight, dweight});
      EXPECT_MIRRORED(m, d, 1);
      EXPECT_MIRRORED(m, dweight, width);
      EXPECT_MIRRORED(m, again, 1);
      EXPECT_EQ(test::values(out), test::values(again));
      swiglu_forward(context.fastest, {gate_up.slice(0, 0, 0), out.slice(0, 0, 0)});
      swiglu_backward(context.fastest, {gate_up.slice(0, 0, 0), dy.slice(0, 0, 0), d->slice(0, 0, 0), {}});
    }
  }
}

TEST(Swiglu, RefusesWhatDoesNotFit) {
  TestContext context;
  const Tensor y = test::zeros(DType::f32, {3, 4}), gate_up = test::zeros(DType::f32, {3, 8}),
               odd = test::zeros(DType::f32, {3, 7}), wide = test::zeros(DType::f64, {3, 4});
  EXPECT_THROW(swiglu_forward(context.fastest, {odd, y}), InternalError);
  EXPECT_THROW(swiglu_forward(context.fastest, {gate_up, wide}), InternalError);
  EXPECT_THROW(swiglu_forward(context.fastest, {{}, y}), InternalError);
  EXPECT_THROW(swiglu_backward(context.fastest, {gate_up, y, odd, {}}), InternalError);
  EXPECT_THROW(swiglu_backward(context.fastest, {gate_up, y, gate_up, odd}), InternalError);
  const Tensor weight = test::zeros(DType::f32, {3}), short_weight = test::zeros(DType::f32, {2});
  EXPECT_NO_THROW(swiglu_backward(context.fastest, {gate_up, y, gate_up, {}, weight, weight}));
  EXPECT_THROW(swiglu_forward(context.fastest, {gate_up, y, short_weight}), InternalError);
  EXPECT_THROW(swiglu_backward(context.fastest, {gate_up, y, gate_up, {}, short_weight}), InternalError);
  EXPECT_THROW(swiglu_backward(context.fastest, {gate_up, y, gate_up, {}, weight, short_weight}), InternalError);
  EXPECT_THROW(swiglu_backward(context.fastest, {gate_up, y, gate_up, {}, {}, weight}), InternalError);
  EXPECT_NE(cpu::swiglu_forward_refuses({gate_up, wide}), nullptr);
  EXPECT_EQ(cpu::swiglu_forward_refuses({gate_up, y}), nullptr);
}

}  // namespace
}  // namespace lamina::ops
