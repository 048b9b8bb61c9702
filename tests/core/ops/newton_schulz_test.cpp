#include "core/ops/optimizer/newton_schulz.h"

#include "core/device/cpu/parallel_for.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Singular values by one-sided Jacobi rotations of the shorter side's rows: slow and sure.
std::vector<double> singular_values(const TensorView& matrix) {
  const bool tall = matrix.size(0) > matrix.size(1);
  const TensorView m = tall ? matrix.transposed() : matrix;
  const auto rows = static_cast<size_t>(m.size(0)), cols = static_cast<size_t>(m.size(1));
  std::vector<std::vector<double>> a(rows, std::vector<double>(cols));
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < cols; ++c) a[r][c] = test::get(m, static_cast<int64_t>(r * cols + c));
  }
  const auto dot = [&](size_t p, size_t q) {
    double sum = 0;
    for (size_t c = 0; c < cols; ++c) sum += a[p][c] * a[q][c];
    return sum;
  };
  for (int sweep = 0; sweep < 12; ++sweep) {
    for (size_t p = 0; p < rows; ++p) {
      for (size_t q = p + 1; q < rows; ++q) {
        const double cross = dot(p, q);
        if (std::abs(cross) < 1e-15) continue;
        const double theta = 0.5 * std::atan2(2 * cross, dot(p, p) - dot(q, q)), co = std::cos(theta),
                     si = std::sin(theta);
        for (size_t c = 0; c < cols; ++c) {
          const double x = a[p][c], y = a[q][c];
          a[p][c] = co * x + si * y;
          a[q][c] = -si * x + co * y;
        }
      }
    }
  }
  std::vector<double> out;
  for (size_t r = 0; r < rows; ++r) out.push_back(std::sqrt(dot(r, r)));
  return out;
}

struct Size {
  int64_t batch, rows, cols;
};

const std::vector<Size> sizes = {{1, 1, 1}, {2, 3, 7}, {3, 16, 16}, {2, 40, 17}, {5, 24, 48}, {1, 65, 130}};

// The odd quintic maps each singular value on its own: s -> a s + b s^3 + c s^5, five times.
TEST(NewtonSchulz, ReferenceMapsSingularValuesByTheQuintic) {
  TestContext test;
  for (const Size& size : sizes) {
    const Tensor x = test::normal(DType::f64, {1, size.rows, size.cols}, 3);
    std::vector<double> want = singular_values(x.view().select(0, 0));
    double norm = 0;
    for (const double s : want) norm += s * s;
    for (double& s : want) {
      s /= std::sqrt(norm) + 1e-7;
      for (int step = 0; step < 5; ++step) s = s * (3.4445 + s * s * (-4.7750 + 2.0315 * s * s));
    }
    newton_schulz(test.fastest, {x, DType::f64});
    std::vector<double> got = singular_values(x.view().select(0, 0));
    for (double& s : want) s = std::abs(s);
    std::sort(want.begin(), want.end());
    std::sort(got.begin(), got.end());
    ASSERT_EQ(got.size(), want.size());
    for (size_t n = 0; n < want.size(); ++n) EXPECT_NEAR(got[n], want[n], 1e-10);
  }
}

TEST(NewtonSchulz, SingularValuesNearOne) {
  TestContext test;
  for (const Size& size : {Size{2, 16, 32}, Size{1, 96, 24}, Size{2, 40, 100}}) {
    for (const DType products : {DType::f32, DType::bf16}) {
      const Tensor x = test::normal(DType::f32, {size.batch, size.rows, size.cols}, 3);
      newton_schulz(test.fastest, {x, products});
      for (int64_t n = 0; n < size.batch; ++n) {
        for (const double s : singular_values(x.view().select(0, n))) {
          const double slack = products == DType::bf16 ? 0.03 : 1e-4;
          EXPECT_GE(s, 0.68 - slack);
          EXPECT_LE(s, 1.14 + slack);
        }
      }
    }
  }
}

// Errors grow with the map's slope: at most 3.4445 per step for the smallest singular values, 485 in five.
TEST(NewtonSchulz, FastestMatchesFloat64) {
  TestContext test;
  for (const Size& size : sizes) {
    SCOPED_TRACE(fmt::format("{} of [{}, {}]", size.batch, size.rows, size.cols));
    const Shape shape{size.batch, size.rows, size.cols};
    const Tensor x = test::normal(DType::f32, shape, 3), want = test::to(DType::f64, x), low = test::to(DType::f32, x),
                 low_want = test::to(DType::f32, x);
    newton_schulz(test.reference, {want, DType::f64});
    newton_schulz(test.fastest, {x, DType::f32});
    EXPECT_LE(test::relative_error(x, want), 500 * test::epsilon_of(DType::f32));
    // Rounding flips at ties make two bf16 runs differ as much as either differs from fp32: a few times eps.
    newton_schulz(test.fastest, {low, DType::bf16});
    newton_schulz(test.reference, {low_want, DType::bf16});
    EXPECT_LE(test::relative_error(low, want), 24 * test::epsilon_of(DType::bf16));
    EXPECT_LE(test::relative_error(low_want, want), 24 * test::epsilon_of(DType::bf16));
  }
}

TEST(NewtonSchulz, TransposedIsTheTransposedResult) {
  TestContext test;
  const Tensor x = test::normal(DType::f32, {1, 30, 50}, 1), t = test::zeros(DType::f32, {1, 50, 30});
  for (int64_t n = 0; n < 1500; ++n) test::set(t, n % 50 * 30 + n / 50, test::get(x, n));
  newton_schulz(test.fastest, {x, DType::f32});
  newton_schulz(test.fastest, {t, DType::f32});
  EXPECT_LE(test::relative_error(x.view().select(0, 0), t.view().select(0, 0).transposed()),
            500 * test::epsilon_of(DType::f32));
}

TEST(NewtonSchulz, BatchedIsOneByOneBitForBit) {
  TestContext test;
  const int threads = cpu::num_threads();
  for (const int count : {1, 2}) {
    cpu::set_num_threads(count);
    for (const Size& size : {Size{7, 20, 36}, Size{3, 150, 40}, Size{5, 64, 64}, Size{2, 256, 300}}) {
      for (const DType products : {DType::f32, DType::bf16}) {
        const Tensor all = test::normal(DType::f32, {size.batch, size.rows, size.cols}, 3),
                     one = test::to(DType::f32, all);
        newton_schulz(test.fastest, {all, products});
        for (int64_t n = 0; n < size.batch; ++n) newton_schulz(test.fastest, {one.view().slice(0, n, n + 1), products});
        EXPECT_EQ(test::values(all), test::values(one));
      }
    }
  }
  cpu::set_num_threads(threads);
}

TEST(NewtonSchulz, ZerosStayZerosAndScaleDoesNotMatter) {
  TestContext test;
  for (OpContext* ctx : {&test.fastest, &test.reference}) {
    for (const DType products : {DType::f32, DType::bf16}) {
      const Tensor x = test::normal(DType::f32, {3, 12, 20}, 3);
      for (int64_t n = 0; n < 240; ++n) {
        test::set(x, 240 + n, 0.0);
        test::set(x, 480 + n, 1e4 * test::get(x, n));
      }
      newton_schulz(*ctx, {x, products});
      for (int64_t n = 0; n < 240; ++n) EXPECT_EQ(test::get(x, 240 + n), 0.0);
      EXPECT_LE(test::relative_error(x.view().select(0, 2), x.view().select(0, 0)), 16 * test::epsilon_of(products));
    }
  }
}

TEST(NewtonSchulz, FewerStepsAndNoMatrices) {
  TestContext test;
  const Tensor x = test::normal(DType::f32, {1, 4, 6}, 1), before = test::to(DType::f64, x),
               none(DType::f32, {0, 4, 6}), thin(DType::f32, {2, 0, 6});
  double norm = 0;
  for (const double value : test::values(before)) norm += value * value;
  newton_schulz(test.fastest, {x, DType::f32, 0});
  for (int64_t n = 0; n < 24; ++n) EXPECT_NEAR(test::get(x, n), test::get(before, n) / std::sqrt(norm), 1e-6);
  EXPECT_NO_THROW(newton_schulz(test.fastest, {none, DType::f32}));
  EXPECT_NO_THROW(newton_schulz(test.fastest, {thin, DType::f32}));
}

TEST(NewtonSchulz, RefusesWhatDoesNotFit) {
  TestContext test;
  const Tensor x = test::normal(DType::f32, {2, 4, 6}, 1), low = test::zeros(DType::bf16, {2, 4, 6});
  EXPECT_THROW(newton_schulz(test.fastest, {low, DType::bf16}), InternalError);
  EXPECT_THROW(newton_schulz(test.fastest, {x, DType::f64}), InternalError);
  EXPECT_THROW(newton_schulz(test.fastest, {x.view().select(0, 0), DType::f32}), InternalError);
  EXPECT_THROW(newton_schulz(test.fastest, {x.view().transposed(), DType::f32}), InternalError);
  EXPECT_THROW(newton_schulz(test.fastest, {x, DType::f32, -1}), InternalError);
}

}  // namespace
}  // namespace lamina::ops
