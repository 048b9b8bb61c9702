#include "core/ops/rms_norm/rms_norm.h"

#include "core/ops/rms_norm/implementations.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

constexpr int64_t row_counts[] = {1, 3, 64, 130}, dims[] = {8, 17, 64, 200};

// Rows of a wider matrix: any row stride must do.
TensorView columns(const Tensor& wide, int64_t dim) {
  return wide->slice(1, 3, 3 + dim);
}

TEST(RmsNorm, ForwardIsTheFormula) {
  TestContext context;
  const Tensor x = test::normal(DType::f64, {3, 17}, 1, 2.0), weight = test::normal(DType::f64, {17}, 2),
               y = test::poisoned(DType::f64, {3, 17}), rstd = test::poisoned(DType::f64, {3});
  rms_norm_forward(context.fastest, {x, weight, 1e-2, y, rstd, {}, {}});
  for (int64_t r = 0; r < 3; ++r) {
    double square = 0;
    for (int64_t i = 0; i < 17; ++i) square += std::pow(test::get(x, r * 17 + i), 2);
    const double want = 1 / std::sqrt(square / 17 + 1e-2);
    EXPECT_NEAR(test::get(rstd, r), want, 1e-15 * want);
    for (int64_t i = 0; i < 17; ++i) {
      EXPECT_NEAR(test::get(y, r * 17 + i), test::get(x, r * 17 + i) * want * test::get(weight, i), 1e-14);
    }
  }
}

TEST(RmsNorm, BackwardMatchesFiniteDifferences) {
  TestContext context;
  const Shape shape{2, 9};
  const Tensor x = test::normal(DType::f64, shape, 1), weight = test::normal(DType::f64, {9}, 2),
               dy = test::normal(DType::f64, shape, 3), y = test::poisoned(DType::f64, shape),
               rstd = test::poisoned(DType::f64, {2}), dx = test::poisoned(DType::f64, shape),
               dweight = test::zeros(DType::f64, {9});
  const auto loss = [&] {
    rms_norm_forward(context.reference, {x, weight, 1e-5, y, rstd, {}, {}});
    double sum = 0;
    for (int64_t i = 0; i < 18; ++i) sum += test::get(y, i) * test::get(dy, i);
    return sum;
  };
  loss();
  rms_norm_backward(context.reference, {x, weight, rstd, dy, dx, GradMode::overwrite, dweight});
  const auto compare = [&](const TensorView& input, const TensorView& gradient) {
    for (int64_t i = 0; i < input.num_elements(); ++i) {
      const double before = test::get(input, i), step = 1e-3;
      const auto at = [&](double shift) {
        test::set(input, i, before + shift);
        const double value = loss();
        test::set(input, i, before);
        return value;
      };
      const double want = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
      EXPECT_NEAR(test::get(gradient, i), want, 1e-9 * (1 + std::abs(want)));
    }
  };
  compare(x, dx);
  compare(weight, dweight);
}

TEST(RmsNorm, FastestMatchesFloat64) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t rows : row_counts) {
      for (const int64_t dim : dims) {
        const bool narrow = dim % 2 == 1;
        const Tensor wide = test::normal(dtype, {rows, dim + 5}, 1, 3.0),
                     weight = test::normal(narrow ? dtype : DType::f32, {dim}, 2),
                     delta = test::normal(dtype, {rows, dim}, 3), y = test::poisoned(dtype, {rows, dim}),
                     again = test::poisoned(dtype, {rows, dim}), rstd = test::poisoned(DType::f32, {rows}),
                     dx = test::poisoned(narrow ? dtype : DType::f32, {rows, dim}),
                     dweight = test::zeros(DType::f32, {dim});
        const TensorView x = columns(wide, dim);
        {
          test::Mirror m;
          rms_norm_forward(context.reference, {m(x), m(weight), 1e-5, m(y), m(rstd), {}, {}});
          rms_norm_forward(context.fastest, {x, weight, 1e-5, y, rstd, {}, {}});
          EXPECT_MIRRORED(m, y, dim);
          EXPECT_MIRRORED(m, rstd, dim);
        }
        rms_norm_apply(context.fastest, {x, weight, rstd, again});
        EXPECT_EQ(test::values(again), test::values(y));
        for (const GradMode mode : {GradMode::overwrite, GradMode::accumulate}) {
          test::Mirror m;
          rms_norm_backward(context.reference, {m(x), m(weight), m(rstd), m(delta), m(dx), mode, m(dweight)});
          rms_norm_backward(context.fastest, {x, weight, rstd, delta, dx, mode, dweight});
          EXPECT_MIRRORED(m, dx, dim);
          EXPECT_MIRRORED(m, dweight, dim + rows);
        }
        // The fused addition: what adding first gives, also in place.
        const Tensor sum = test::poisoned(dtype, {rows, dim});
        rms_norm_forward(context.fastest, {x, weight, 1e-5, y, rstd, delta, sum});
        rms_norm_forward(context.fastest, {sum, weight, 1e-5, again, rstd, {}, {}});
        EXPECT_EQ(test::values(again), test::values(y));
        for (int64_t i = 0; i < rows * dim; ++i) {
          const float exact = static_cast<float>(test::get(x, i)) + static_cast<float>(test::get(delta, i));
          EXPECT_EQ(test::get(sum, i), dtype == DType::f32 ? exact : static_cast<double>(bf16(exact)));
        }
        rms_norm_forward(context.fastest, {x, weight, 1e-5, y, rstd, delta, x});
        EXPECT_EQ(test::values(x), test::values(sum));
        EXPECT_EQ(test::values(again), test::values(y));
      }
    }
  }
}

// Rows longer than a GPU's threads hold in registers; strides and addresses of every alignment.
TEST(RmsNorm, LongRows) {
  TestContext context;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t dim : {512, 1040, 8192, 8193, 9000}) {
      const int64_t rows = 3;
      const Tensor wide = test::normal(dtype, {rows, dim + 5}, 1, 3.0), weight = test::normal(DType::f32, {dim}, 2),
                   dy = test::normal(dtype, {rows, dim}, 3), y = test::poisoned(dtype, {rows, dim}),
                   rstd = test::poisoned(DType::f32, {rows}), dx = test::poisoned(dtype, {rows, dim}),
                   dweight = test::normal(DType::f32, {dim}, 4), sum = test::poisoned(dtype, {rows, dim});
      const TensorView x = columns(wide, dim);
      test::Mirror m;
      rms_norm_forward(context.reference, {m(x), m(weight), 1e-5, m(y), m(rstd), {}, {}});
      rms_norm_forward(context.fastest, {x, weight, 1e-5, y, rstd, {}, {}});
      EXPECT_MIRRORED(m, y, dim);
      rms_norm_backward(context.reference, {m(x), m(weight), m(rstd), m(dy), m(dx), GradMode::overwrite, m(dweight)});
      rms_norm_backward(context.fastest, {x, weight, rstd, dy, dx, GradMode::overwrite, dweight});
      EXPECT_MIRRORED(m, dx, dim);
      EXPECT_MIRRORED(m, dweight, dim);
      rms_norm_forward(context.fastest, {x, weight, 1e-5, y, rstd, dy, sum});
      rms_norm_forward(context.fastest, {sum, weight, 1e-5, dx, rstd, {}, {}});
      EXPECT_EQ(test::values(dx), test::values(y));
    }
  }
}

TEST(RmsNorm, NoRows) {
  TestContext context;
  const Tensor none = test::zeros(DType::f32, {0, 8}), rstd = test::zeros(DType::f32, {0}),
               weight = test::normal(DType::f32, {8}, 1), dweight = test::normal(DType::f32, {8}, 2);
  const auto before = test::values(dweight);
  rms_norm_forward(context.fastest, {none, weight, 1e-5, none, rstd, {}, {}});
  rms_norm_apply(context.fastest, {none, weight, rstd, none});
  rms_norm_backward(context.fastest, {none, weight, rstd, none, none, GradMode::overwrite, dweight});
  EXPECT_EQ(test::values(dweight), before);
}

TEST(RmsNorm, RefusesWhatDoesNotFit) {
  TestContext context;
  const Tensor x = test::zeros(DType::f32, {3, 8}), weight = test::zeros(DType::f32, {8}),
               rstd = test::zeros(DType::f32, {3}), wrong = test::zeros(DType::f32, {3, 9}),
               wide = test::zeros(DType::f64, {3, 8});
  EXPECT_THROW(rms_norm_forward(context.fastest, {x, weight, 1e-5, wrong, rstd, {}, {}}), InternalError);
  EXPECT_THROW(rms_norm_forward(context.fastest, {x, rstd, 1e-5, x, rstd, {}, {}}), InternalError);
  EXPECT_THROW(rms_norm_forward(context.fastest, {x, weight, 1e-5, wide, rstd, {}, {}}), InternalError);
  EXPECT_THROW(rms_norm_forward(context.fastest, {x, weight, 1e-5, x, {}, {}, {}}), InternalError);
  EXPECT_THROW(rms_norm_forward(context.fastest, {x, weight, 1e-5, x, rstd, x, {}}), InternalError);
  EXPECT_THROW(rms_norm_backward(context.fastest, {x, weight, rstd, x, wide, GradMode::overwrite, weight}),
               InternalError);
  EXPECT_THROW(rms_norm_backward(context.fastest, {x, weight, rstd, wrong, x, GradMode::overwrite, weight}),
               InternalError);
  EXPECT_THROW(rms_norm_apply(context.fastest, {x, weight, rstd, x->transposed()}), InternalError);
  EXPECT_NE(cpu::rms_norm_apply_refuses({wide, {}, {}, {}}), nullptr);
  EXPECT_EQ(cpu::rms_norm_apply_refuses({x, {}, {}, {}}), nullptr);
}

}  // namespace
}  // namespace lamina::ops
