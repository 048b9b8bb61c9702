#include "core/ops/short_conv/short_conv.h"

#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Three documents per sequence where there is room for them, cut at other places in each.
Tensor documents(int64_t batch, int64_t num_tokens) {
  Tensor starts(DType::i32, {batch, num_tokens});
  for (int64_t row = 0; row < batch; ++row) {
    int32_t begin = 0;
    for (int64_t t = 0; t < num_tokens; ++t) {
      if (t == 2 + row || t == num_tokens - 1 - row) begin = static_cast<int32_t>(t);
      starts.view().as<int32_t>()[row * num_tokens + t] = begin;
    }
  }
  return starts;
}

TEST(ShortConv, ForwardIsTheFormula) {
  TestContext context;
  const int64_t num_tokens = 9, channels = 3, taps = 4;
  const Tensor x = test::normal(DType::f64, {2, num_tokens, channels}, 1),
               weight = test::normal(DType::f64, {channels, taps}, 2), starts = documents(2, num_tokens),
               y = test::poisoned(DType::f64, {2, num_tokens, channels});
  short_conv_forward(context.fastest, {x, weight, starts, y});
  for (int64_t row = 0; row < 2; ++row) {
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        double c = 0;
        for (int64_t back = 0; back < taps; ++back) {  // tokens back from t; the last tap is t itself
          if (t - back < static_cast<int64_t>(test::get(starts, row * num_tokens + t))) break;
          c += test::get(weight, channel * taps + taps - 1 - back) *
               test::get(x, (row * num_tokens + t - back) * channels + channel);
        }
        EXPECT_NEAR(test::get(y, (row * num_tokens + t) * channels + channel), c / (1 + std::exp(-c)), 1e-15 * 20);
      }
    }
  }
}

TEST(ShortConv, BackwardMatchesFiniteDifferences) {
  TestContext context;
  for (const int64_t taps : {1, 4}) {
    const Shape shape{2, 7, 2};
    const Tensor x = test::normal(DType::f64, shape, 1), weight = test::normal(DType::f64, {2, taps}, 2),
                 dy = test::normal(DType::f64, shape, 3), starts = documents(2, 7),
                 y = test::poisoned(DType::f64, shape), dx = test::poisoned(DType::f64, shape),
                 dweight = test::zeros(DType::f64, {2, taps});
    const auto loss = [&] {
      short_conv_forward(context.reference, {x, weight, starts, y});
      double sum = 0;
      for (int64_t i = 0; i < y->num_elements(); ++i) sum += test::get(y, i) * test::get(dy, i);
      return sum;
    };
    for (int i = 0; i < 2; ++i) {
      short_conv_backward(context.reference, {x, weight, starts, dy, dx, dweight});
    }
    const auto compare = [&](const TensorView& input, const TensorView& gradient, double times) {
      for (int64_t i = 0; i < input.num_elements(); ++i) {
        const double before = test::get(input, i), step = 1e-3;
        const auto at = [&](double shift) {
          test::set(input, i, before + shift);
          const double value = loss();
          test::set(input, i, before);
          return value;
        };
        const double want = times * (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
        EXPECT_NEAR(test::get(gradient, i), want, 1e-9 * (1 + std::abs(want)));
      }
    };
    compare(x, dx, 1);
    compare(weight, dweight, 2);  // accumulated twice
  }
}

TEST(ShortConv, FastestMatchesFloat64) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t taps : {1, 2, 4, 7}) {
      for (const int64_t num_tokens : {1, 5, 65}) {
        for (const int64_t channels : {1, 17, 48, 130}) {
          const Shape shape{2, num_tokens, channels};
          const Tensor wide = test::normal(dtype, {2, num_tokens, channels + 5}, 1, 2.0),
                       weight = test::normal(DType::f32, {channels, taps}, 2), dy = test::normal(dtype, shape, 3),
                       starts = documents(2, num_tokens), y = test::poisoned(dtype, shape),
                       wide_dx = test::poisoned(dtype, {2, num_tokens, channels + 3}),
                       dweight = test::zeros(DType::f32, {channels, taps});
          const TensorView x = wide->slice(2, 3, 3 + channels), dx = wide_dx->slice(2, 1, 1 + channels);
          for (const bool packed : {false, true}) {
            const TensorView cuts = packed ? starts.view() : TensorView();
            test::Mirror m;
            short_conv_forward(context.reference, {m(x), m(weight), cuts, m(y)});
            short_conv_forward(context.fastest, {x, weight, cuts, y});
            EXPECT_MIRRORED(m, y, taps);
            for (int i = 0; i < 2; ++i) {
              short_conv_backward(context.reference, {m(x), m(weight), cuts, m(dy), m(dx), m(dweight)});
              short_conv_backward(context.fastest, {x, weight, cuts, dy, dx, dweight});
            }
            EXPECT_MIRRORED(m, dx, 4 * taps);
            EXPECT_MIRRORED(m, dweight, 4 * num_tokens, std::sqrt(static_cast<double>(2 * num_tokens)));
          }
          for (int64_t i = 0; i < 2 * num_tokens; ++i) {  // beside the columns nothing is written
            EXPECT_TRUE(std::isnan(test::get(wide_dx, i * (channels + 3))));
            EXPECT_TRUE(std::isnan(test::get(wide_dx, i * (channels + 3) + channels + 2)));
          }
        }
      }
    }
  }
}

TEST(ShortConv, PackedDocumentsAreSeparateRuns) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const int64_t num_tokens = 40, cut = 13, channels = 24, taps = 4;
    const Shape shape{1, num_tokens, channels};
    const Tensor x = test::normal(dtype, shape, 1), weight = test::normal(DType::f32, {channels, taps}, 2),
                 dy = test::normal(dtype, shape, 3), y = test::poisoned(dtype, shape),
                 dx = test::poisoned(dtype, shape), apart = test::poisoned(dtype, shape),
                 d_apart = test::poisoned(dtype, shape), dweight = test::zeros(DType::f32, {channels, taps}),
                 starts = test::zeros(DType::i32, {1, num_tokens});
    for (int64_t t = cut; t < num_tokens; ++t) test::set(starts, t, static_cast<double>(cut));
    short_conv_forward(context.fastest, {x, weight, starts, y});
    short_conv_backward(context.fastest, {x, weight, starts, dy, dx, dweight});
    for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, std::pair{cut, num_tokens}}) {
      const auto part = [b = begin, e = end](const Tensor& t) { return t->slice(1, b, e); };
      short_conv_forward(context.fastest, {part(x), weight, {}, part(apart)});
      short_conv_backward(context.fastest, {part(x), weight, {}, part(dy), part(d_apart), dweight});
    }
    EXPECT_EQ(test::values(y), test::values(apart));
    EXPECT_EQ(test::values(dx), test::values(d_apart));
  }
}

TEST(ShortConv, NothingToDo) {
  TestContext context;
  const Tensor weight = test::normal(DType::f32, {3, 4}, 1), dweight = test::normal(DType::f32, {3, 4}, 2);
  const auto before = test::values(dweight);
  float none = 0;
  for (const Shape& shape : {Shape{0, 4, 3}, Shape{2, 0, 3}}) {
    const TensorView x(&none, DType::f32, shape);
    short_conv_forward(context.fastest, {x, weight, {}, x});
    short_conv_backward(context.fastest, {x, weight, {}, x, x, dweight});
  }
  EXPECT_EQ(test::values(dweight), before);
}

TEST(ShortConv, RefusesWhatDoesNotFit) {
  TestContext context;
  const Shape shape{2, 5, 3};
  const Tensor x = test::zeros(DType::f32, shape), dx = test::zeros(DType::f32, shape),
               weight = test::zeros(DType::f32, {3, 4}), no_taps = test::zeros(DType::f32, {3, 0}),
               wrong = test::zeros(DType::f32, {2, 5, 4}), starts = test::zeros(DType::i32, {2, 5}),
               bf = test::zeros(DType::bf16, {3, 4});
  short_conv_forward(context.fastest, {x, weight, starts, dx});
  EXPECT_THROW(short_conv_forward(context.fastest, {x, weight, starts, wrong}), InternalError);
  EXPECT_THROW(short_conv_forward(context.fastest, {x, no_taps, starts, dx}), InternalError);
  EXPECT_THROW(short_conv_forward(context.fastest, {x, bf, starts, dx}), InternalError);
  EXPECT_THROW(short_conv_forward(context.fastest, {x, weight->transposed(), starts, dx}), InternalError);
  EXPECT_THROW(short_conv_forward(context.fastest, {x, weight, x, dx}), InternalError);
  EXPECT_THROW(short_conv_backward(context.fastest, {x, weight, starts, dx, dx, weight}), InternalError);
  EXPECT_THROW(short_conv_backward(context.fastest, {x, weight, starts, x, wrong, weight}), InternalError);
  EXPECT_THROW(short_conv_backward(context.fastest, {x, weight, starts, x, dx, bf}), InternalError);
  test::set(starts, 3, 2);  // neither a start nor what the token before says
  EXPECT_THROW(short_conv_forward(context.fastest, {x, weight, starts, dx}), InternalError);
  test::set(starts, 3, 3);
  EXPECT_THROW(short_conv_forward(context.fastest, {x, weight, starts, dx}), InternalError);  // token 4 says 0
  test::set(starts, 4, 3);
  short_conv_forward(context.fastest, {x, weight, starts, dx});
}

}  // namespace
}  // namespace lamina::ops
