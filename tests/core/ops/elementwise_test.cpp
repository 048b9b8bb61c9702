#include "core/ops/elementwise/elementwise.h"

#include "core/device/cpu/parallel_for.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

constexpr DType dtypes[] = {DType::bf16, DType::f32, DType::f64};
constexpr int64_t counts[] = {1, 15, 64, 1003, 70001};

double rounded(double value, DType dtype) {
  if (dtype == DType::f64) return value;
  return dtype == DType::f32 ? static_cast<float>(value) : static_cast<double>(bf16(static_cast<float>(value)));
}

TEST(Elementwise, AddEveryMixtureOfDtypes) {
  TestContext context;
  for (const DType a_dtype : dtypes) {
    for (const DType b_dtype : dtypes) {
      for (const DType y_dtype : dtypes) {
        for (const int64_t count : counts) {
          const Tensor a = test::normal(a_dtype, {count}, 1), b = test::normal(b_dtype, {count}, 2),
                       y = test::poisoned(y_dtype, {count});
          add(context.fastest, {a, b, y});
          const bool wide = a_dtype == DType::f64 || b_dtype == DType::f64 || y_dtype == DType::f64;
          const bool twice = wide && y_dtype == DType::bf16;  // rounded() rounds to fp32 in between
          for (int64_t i = 0; i < count; ++i) {
            const double exact = test::get(a, i) + test::get(b, i);
            const double sum = wide ? exact : static_cast<float>(exact);
            if (twice) {
              ASSERT_NEAR(test::get(y, i), sum, 1.0001 * test::epsilon_of(y_dtype) * std::abs(sum));
            } else {
              ASSERT_EQ(test::get(y, i), rounded(sum, y_dtype));
            }
          }
        }
      }
    }
  }
}

TEST(Elementwise, AddInPlace) {
  TestContext context;
  for (const DType dtype : dtypes) {
    const Tensor a = test::normal(dtype, {37}, 1), b = test::normal(dtype, {37}, 2), y = test::poisoned(dtype, {37});
    add(context.fastest, {a, b, y});
    add(context.fastest, {a, b, a});
    EXPECT_EQ(test::values(a), test::values(y));
    const Tensor fresh = test::normal(dtype, {37}, 1);
    add(context.fastest, {fresh, b, b});
    EXPECT_EQ(test::values(b), test::values(y));
  }
}

TEST(Elementwise, CastRoundsOnce) {
  TestContext context;
  for (const DType from : dtypes) {
    for (const DType to : dtypes) {
      for (const int64_t count : counts) {
        const Tensor x = test::normal(from, {count}, 1), y = test::poisoned(to, {count});
        cast(context.fastest, {x, y});
        for (int64_t i = 0; i < count; ++i) {
          if (from == DType::f64 && to == DType::bf16) {
            EXPECT_NEAR(test::get(y, i), test::get(x, i), 1.0001 * test::epsilon_of(to) * std::abs(test::get(x, i)));
          } else {
            EXPECT_EQ(test::get(y, i), rounded(test::get(x, i), to));
          }
        }
      }
    }
  }
}

// 1 + 2^-8 is a tie that goes to 1; a little more must go up, though fp32 can't hold the little.
TEST(Elementwise, DoubleToBf16RoundsOnce) {
  TestContext context;
  const Tensor x = test::zeros(DType::f64, {4}), y = test::poisoned(DType::bf16, {4});
  const double values[] = {1 + 0x1p-8, 1 + 0x1p-8 + 0x1p-40, -1 - 0x1p-8 - 0x1p-40, 1 + 3 * 0x1p-8 - 0x1p-40};
  const double want[] = {1, 1 + 0x1p-7, -1 - 0x1p-7, 1 + 0x1p-7};
  for (int64_t i = 0; i < 4; ++i) test::set(x, i, values[i]);
  cast(context.fastest, {x, y});
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(test::get(y, i), want[i]);
}

TEST(Elementwise, CastKeepsSpecialValues) {
  TestContext context;
  const float special[] = {std::numeric_limits<float>::infinity(),   -std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::max(),        -0.0f,
                           std::numeric_limits<float>::denorm_min(), std::bit_cast<float>(0x7fffffffu),
                           std::bit_cast<float>(0xffffffffu),        std::bit_cast<float>(0x7f800001u)};
  const Tensor x = test::zeros(DType::f32, {64}), y = test::poisoned(DType::bf16, {64});
  for (int64_t i = 0; i < 64; ++i) x->as<float>()[i] = special[i % 8];
  cast(context.fastest, {x, y});
  for (int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(y->as<bf16>()[i].bits, bf16(special[i % 8]).bits) << i;
  }
}

TEST(Elementwise, SumSquaresIsTheSameForAllThreadsAndImplementations) {
  TestContext context;
  const int before = lamina::cpu::num_threads();
  for (const DType dtype : dtypes) {
    for (const int64_t count : {1, 31, 33, 8192, 8193, 70001}) {
      const Tensor x = test::normal(dtype, {count}, 1);
      double exact = 0;
      for (const double value : test::values(x)) exact += value * value;
      const double want = sum_squares(context.reference, x);
      EXPECT_NEAR(want, exact, 1e-13 * exact);
      for (const int threads : {1, 2, 3}) {
        lamina::cpu::set_num_threads(threads);
        EXPECT_EQ(sum_squares(context.fastest, x), want) << name_of(dtype) << " " << count;
      }
    }
  }
  lamina::cpu::set_num_threads(before);
}

TEST(Elementwise, SumSquaresOfManyTensorsAreThoseOfEach) {
  TestContext context;
  std::vector<Tensor> tensors;
  std::vector<TensorView> views;
  for (const int64_t count : {8193, 1, 0, 20000, 8192}) {
    tensors.push_back(test::normal(count < 8193 ? DType::bf16 : DType::f32, {count}, static_cast<uint64_t>(count)));
    views.push_back(tensors.back());
  }
  // More than one launch takes, of all sizes and alignments.
  for (int64_t i = 0; i < 1100; ++i) {
    const TensorView& from = views[i % 3 == 0 ? 4 : 3];
    views.push_back(from.slice(0, i, i + 1 + i * 37 % 900));
  }
  std::vector<double> got(views.size(), -1.0), want(views.size());
  sum_squares(context.fastest, {views, got});
  for (size_t i = 0; i < views.size(); ++i) want[i] = sum_squares(context.reference, views[i]);
  EXPECT_EQ(got, want);
}

TEST(Elementwise, Fill) {
  TestContext context;
  for (const DType dtype : dtypes) {
    for (const int64_t count : counts) {
      const Tensor x = test::poisoned(dtype, {count});
      fill(context.fastest, {x, 0.1});
      for (const double value : test::values(x)) ASSERT_EQ(value, rounded(0.1, dtype));
    }
  }
}

TEST(Elementwise, Scale) {
  TestContext context;
  for (const DType dtype : dtypes) {
    for (const int64_t count : counts) {
      const Tensor x = test::normal(dtype, {count}, 1);
      const auto before = test::values(x);
      scale(context.fastest, {x, 0.3});
      for (int64_t i = 0; i < count; ++i) {
        const double value = before[static_cast<size_t>(i)];
        const double want = dtype == DType::f64 ? 0.3 * value : rounded(0.3f * static_cast<float>(value), dtype);
        ASSERT_EQ(test::get(x, i), want);
      }
    }
  }
}

// Flat data begins anywhere: at an odd element of its own, too.
TEST(Elementwise, AnyAlignment) {
  TestContext context;
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const Tensor a = test::normal(dtype, {101}, 1), b = test::normal(DType::f32, {100}, 2),
                 y = test::poisoned(dtype, {103});
    const TensorView x = a->slice(0, 1, 101), out = y->slice(0, 3, 103);
    add(context.fastest, {x, b, out});
    for (int64_t i = 0; i < 100; ++i) {
      const float sum = static_cast<float>(test::get(x, i)) + static_cast<float>(test::get(b, i));
      ASSERT_EQ(test::get(out, i), rounded(sum, dtype));
    }
    for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(test::get(y, i)));
    EXPECT_EQ(sum_squares(context.fastest, x), sum_squares(context.reference, x));
    scale(context.fastest, {out, 0.5});
    cast(context.fastest, {out, b});
    for (int64_t i = 0; i < 100; ++i) ASSERT_EQ(test::get(b, i), test::get(out, i));
    fill(context.fastest, {out, 2.0});
    for (int64_t i = 0; i < 100; ++i) ASSERT_EQ(test::get(out, i), 2.0);
    for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(test::get(y, i)));
  }
}

TEST(Elementwise, NothingToDo) {
  TestContext context;
  const TensorView none(nullptr, DType::f32, {0});
  add(context.fastest, {none, none, none});
  cast(context.fastest, {none, none});
  fill(context.fastest, {none, 1.0});
  EXPECT_EQ(sum_squares(context.fastest, none), 0.0);
  sum_squares(context.fastest, SumSquares{});
}

TEST(Elementwise, RefusesWhatDoesNotFit) {
  TestContext context;
  const Tensor x = test::zeros(DType::f32, {4, 6}), shorter = test::zeros(DType::f32, {5}),
               tokens = test::zeros(DType::i32, {4, 6});
  EXPECT_THROW(add(context.fastest, {x, shorter, x}), InternalError);
  EXPECT_THROW(add(context.fastest, {x, x->transposed(), x}), InternalError);
  EXPECT_THROW(add(context.fastest, {x, tokens, x}), InternalError);
  EXPECT_THROW(cast(context.fastest, {x, shorter}), InternalError);
  EXPECT_THROW(cast(context.fastest, {tokens, x}), InternalError);
  const TensorView view = x;
  EXPECT_THROW(sum_squares(context.fastest, {{&view, 1}, {}}), InternalError);
  EXPECT_THROW(sum_squares(context.fastest, x->slice(1, 0, 2)), InternalError);
  EXPECT_THROW(fill(context.fastest, {tokens, 1.0}), InternalError);
}

}  // namespace
}  // namespace lamina::ops
