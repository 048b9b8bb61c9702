#include "core/ops/matmul/matmul.h"

#include <array>
#include <thread>

#include "core/device/cpu/parallel_for.h"
#include "tests/support/op_test.h"

namespace lamina::ops {
namespace {

using test::element;
using test::TestContext;

// A [rows, cols] view with a row stride (or, transposed, a column stride) longer than the matrix, inside its own
// memory.
struct Operand {
  test::Tensor memory;
  TensorView view;
};

Operand operand(DType dtype, int64_t rows, int64_t cols, bool transposed, int64_t padding) {
  const int64_t lines = transposed ? cols : rows, length = transposed ? rows : cols;
  Operand out{test::Tensor(dtype, {lines + 2, length + padding}), {}};
  test::fill(out.memory, 1e30);  // what a wrong stride would read
  out.view = out.memory.view().slice(0, 1, 1 + lines).slice(1, padding / 2, padding / 2 + length);
  if (transposed) out.view = out.view.transposed();
  return out;
}

struct Case {
  DType in, out;
  int64_t rows, cols, depth;
  bool a_transposed, b_transposed;
  GradMode mode;
  int64_t padding;
};

// Against the product in double, with the bound of a sum of `depth` products in the accumulation dtype.
void check(OpContext& ctx, const Case& what) {
  Operand a = operand(what.in, what.rows, what.depth, what.a_transposed, what.padding);
  Operand b = operand(what.in, what.depth, what.cols, what.b_transposed, what.padding);
  Operand c = operand(what.out, what.rows, what.cols, false, what.padding);
  test::fill_normal(a.view, 1);
  test::fill_normal(b.view, 2);
  const bool accumulate = what.mode == GradMode::accumulate;
  if (accumulate)
    test::fill_normal(c.view, 3);
  else
    test::poison(c.view);
  const auto before = test::values(c.view);
  matmul(ctx, {a.view, b.view, c.view, what.mode});

  const double eps = test::epsilon_of(accumulation_dtype(what.in)), eps_out = test::epsilon_of(what.out);
  int64_t wrong = 0;
  for (int64_t i = 0; i < what.rows; ++i) {
    for (int64_t j = 0; j < what.cols; ++j) {
      double sum = accumulate ? before[static_cast<size_t>(i * what.cols + j)] : 0.0, magnitude = std::abs(sum);
      for (int64_t k = 0; k < what.depth; ++k) {
        const double term = element(a.view, i * a.view.stride(0) + k * a.view.stride(1)) *
                            element(b.view, k * b.view.stride(0) + j * b.view.stride(1));
        sum += term;
        magnitude += std::abs(term);
      }
      const double got = element(c.view, i * c.view.stride(0) + j * c.view.stride(1));
      const double bound = eps * static_cast<double>(what.depth + 2) * magnitude + eps_out * std::abs(sum);
      if (!(std::abs(got - sum) <= bound)) ++wrong;
    }
  }
  EXPECT_EQ(wrong, 0);
  // Nothing outside c was written: the guard values are where they were.
  int64_t guards = 0;
  const double guard = element(c.memory, 0);
  for (int64_t n = 0; n < c.memory->num_elements(); ++n) guards += element(c.memory, n) == guard ? 1 : 0;
  EXPECT_EQ(guards, c.memory->num_elements() - what.rows * what.cols);
}

std::vector<std::pair<DType, DType>> dtype_pairs() {
  return {{DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}, {DType::f64, DType::f64}};
}

void check_all(const std::vector<std::array<int64_t, 3>>& sizes, OpContext& ctx) {
  for (const auto& [in, out] : dtype_pairs()) {
    for (const auto& [m, n, k] : sizes) {
      for (int bits = 0; bits < 16; ++bits) {
        const Case what{in,
                        out,
                        m,
                        n,
                        k,
                        (bits & 1) != 0,
                        (bits & 2) != 0,
                        (bits & 4) != 0 ? GradMode::accumulate : GradMode::overwrite,
                        (bits & 8) != 0 ? 6 : 0};
        SCOPED_TRACE(fmt::format("{} -> {}, M {}, N {}, K {}, transposed {} {}, accumulate {}, padding {}", name_of(in),
                                 name_of(out), m, n, k, what.a_transposed, what.b_transposed, bits & 4, what.padding));
        check(ctx, what);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

const std::vector<std::array<int64_t, 3>> all_sizes = {{1, 1, 1},    {3, 1, 17},    {1, 17, 3},     {17, 3, 1},
                                                       {64, 64, 64}, {130, 17, 64}, {17, 130, 130}, {1, 64, 130},
                                                       {64, 1, 130}, {130, 130, 3}, {3, 130, 257},  {130, 130, 130}};

TEST(Matmul, ReferenceEqualsTheProductInDouble) {
  TestContext test;
  check_all({{1, 1, 1}, {3, 17, 64}, {65, 130, 17}}, test.reference);
}
TEST(Matmul, FastestEqualsTheProductInDouble) {
  TestContext test;
  check_all(all_sizes, test.fastest);
}
TEST(Matmul, ThroughFp32EqualsTheProductInDouble) {
  TestContext test;
  check_all(all_sizes, test.through_fp32);
}

TEST(Matmul, EmptyExtents) {
  TestContext test;
  for (DType dtype : {DType::f32, DType::bf16, DType::f64}) {
    test::Tensor a(dtype, {3, 0}), b(dtype, {0, 4});
    test::Tensor c = test::poisoned(dtype, {3, 4});
    matmul(test.fastest, {a, b, c, GradMode::overwrite});
    for (double value : test::values(c)) EXPECT_EQ(value, 0.0);
    test::fill(c, 2.0);
    matmul(test.fastest, {a, b, c, GradMode::accumulate});
    for (double value : test::values(c)) EXPECT_EQ(value, 2.0);
    test::Tensor none(dtype, {0, 3}), right(dtype, {3, 4}), out(dtype, {0, 4});
    matmul(test.fastest, {none, right, out, GradMode::overwrite});
  }
}

TEST(Matmul, LinearLayerIsThreeProducts) {
  TestContext test;
  const test::Tensor x = test::normal(DType::f64, {5, 3}, 1), w = test::normal(DType::f64, {4, 3}, 2);
  const test::Tensor dy = test::normal(DType::f64, {5, 4}, 3);
  test::Tensor y = test::poisoned(DType::f64, {5, 4}), dx = test::poisoned(DType::f64, {5, 3});
  test::Tensor dw = test::zeros(DType::f64, {4, 3});
  linear(test.fastest, x, w, y);
  linear_input_gradient(test.fastest, dy, w, dx, GradMode::overwrite);
  linear_weight_gradient(test.fastest, dy, x, dw);
  linear_weight_gradient(test.fastest, dy, x, dw);  // accumulates: twice
  // <dy, dy/dx . r> and its adjoint, for the whole of x and w: <y, dy> = <x, dx> = <w, dw>.
  const auto inner = [](const TensorView& p, const TensorView& q) {
    double sum = 0;
    for (int64_t n = 0; n < p.num_elements(); ++n) sum += test::get(p, n) * test::get(q, n);
    return sum;
  };
  const double want = inner(y, dy);
  EXPECT_NEAR(inner(x, dx), want, 1e-13 * std::abs(want) + 1e-14);
  EXPECT_NEAR(inner(w, dw), 2 * want, 1e-13 * std::abs(want) + 1e-14);
}

TEST(Matmul, RefusesWhatIsNoProduct) {
  TestContext test;
  test::Tensor a(DType::f32, {4, 6}), b(DType::f32, {6, 8}), c(DType::f32, {4, 8});
  test::Tensor narrow(DType::f32, {5, 8}), low(DType::bf16, {4, 8}), ints(DType::i32, {4, 6});
  EXPECT_NO_THROW(matmul(test.fastest, {a, b, c, GradMode::overwrite}));
  EXPECT_THROW(matmul(test.fastest, {a, narrow, c, GradMode::overwrite}), InternalError);
  EXPECT_THROW(matmul(test.fastest, {a, b, low, GradMode::overwrite}), InternalError);
  EXPECT_THROW(matmul(test.fastest, {ints, b, c, GradMode::overwrite}), InternalError);
  EXPECT_THROW(matmul(test.fastest, {TensorView(), b, c, GradMode::overwrite}), InternalError);
  TensorView strided = a;  // no unit stride
  strided.shape = Shape{2, 3};
  strided.strides = Shape{12, 2};
  test::Tensor b3(DType::f32, {3, 8}), c2(DType::f32, {2, 8});
  EXPECT_THROW(matmul(test.fastest, {strided, b3, c2, GradMode::overwrite}), InternalError);
  TensorView broadcast = a;
  broadcast.strides = Shape{0, 1};
  EXPECT_THROW(matmul(test.fastest, {broadcast, b, c, GradMode::overwrite}), InternalError);
  test::Tensor square(DType::f32, {8, 4});
  EXPECT_THROW(matmul(test.fastest, {a, b, square.view().transposed(), GradMode::overwrite}), InternalError);
}

// At another number of threads oneDNN may add in another order; at the same one it never does. Sums as long as weight gradients',
// which it splits, among them.
TEST(Matmul, TheSameBitsAtTheSameNumberOfThreads) {
  const int before = lamina::cpu::num_threads();
  TestContext test;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto& [m, n, k] :
         std::vector<std::array<int64_t, 3>>{{333, 200, 64}, {100, 1, 2048}, {48, 64, 2048}, {256, 128, 768}}) {
      const test::Tensor a = test::normal(dtype, {m, k}, 1), b = test::normal(dtype, {k, n}, 2),
                         left = test::normal(dtype, {k, m}, 3), right = test::normal(dtype, {n, k}, 4);
      for (const int threads : {1, 2, 3, 4, 7}) {
        lamina::cpu::set_num_threads(threads);
        std::vector<std::vector<double>> first;
        for (int repeat = 0; repeat < 3; ++repeat) {
          const test::Tensor plain = test::poisoned(dtype, {m, n}), forward = test::poisoned(dtype, {m, n}),
                             weight = test::normal(DType::f32, {m, n}, 5);
          matmul(test.fastest, {a, b, plain, GradMode::overwrite});
          matmul(test.fastest, {a, right.view().transposed(), forward, GradMode::overwrite});
          matmul(test.fastest, {left.view().transposed(), b, weight, GradMode::accumulate});
          std::vector<std::vector<double>> all = {test::values(plain), test::values(forward), test::values(weight)};
          if (repeat == 0) first = all;
          EXPECT_TRUE(all == first) << name_of(dtype) << " " << m << " x " << n << " x " << k << ", " << threads;
        }
      }
    }
  }
  lamina::cpu::set_num_threads(before);
}

// Several ranks as threads of one process use the same kernels at the same time.
TEST(Matmul, ThreadsDoNotShareState) {
  const test::Tensor a = test::normal(DType::f32, {96, 64}, 1), b = test::normal(DType::f32, {64, 48}, 2);
  TestContext test;
  test::Tensor want = test::poisoned(DType::f32, {96, 48});
  matmul(test.reference, {a, b, want, GradMode::overwrite});
  std::vector<double> errors(4, 1.0);
  std::vector<std::thread> threads;
  for (double& error : errors) {
    threads.emplace_back([&] {
      TestContext own;
      test::Tensor c = test::poisoned(DType::f32, {96, 48});
      for (int repeat = 0; repeat < 50; ++repeat) matmul(own.fastest, {a, b, c, GradMode::overwrite});
      error = test::relative_error(c, want);
    });
  }
  for (auto& thread : threads) thread.join();
  for (double error : errors) EXPECT_LT(error, 64 * test::epsilon_of(DType::f32));
}

// Few rows, as those of a text that is being written: each has the same bits whatever comes with it, at any number of threads.
TEST(Matmul, RowsDoNotDependOnEachOther) {
  TestContext context;
  const int before = cpu::num_threads();
  for (const auto& [dtype, out] :
       {std::pair{DType::f32, DType::f32}, {DType::bf16, DType::bf16}, {DType::bf16, DType::f32}})
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {70, 33}, {513, 512}}) {
      const test::Tensor wide = test::normal(dtype, {16, k + 3}, 1), w = test::normal(dtype, {n, k}, 2);
      const TensorView x = wide->slice(1, 2, 2 + k);
      const test::Tensor expected = test::poisoned(DType::f64, {16, n});
      linear(context.reference, test::to(DType::f64, x), test::to(DType::f64, w), expected);
      std::vector<double> all;
      for (const int threads : {1, 3})
        for (const int64_t m : {16, 1, 2, 3, 7}) {
          cpu::set_num_threads(threads);
          const test::Tensor y = test::poisoned(out, {m, n});
          linear(context.fastest, x.slice(0, 16 - m, 16), w, y);
          EXPECT_LT(test::relative_error(y, expected->slice(0, 16 - m, 16)), 16 * test::epsilon_of(out))
              << n << " " << k;
          const std::vector<double> found = test::values(y);
          if (all.empty()) all = found;
          EXPECT_EQ(found, std::vector<double>(all.end() - static_cast<std::ptrdiff_t>(found.size()), all.end())) << m;
        }
    }
  cpu::set_num_threads(before);
}

}  // namespace
}  // namespace lamina::ops
