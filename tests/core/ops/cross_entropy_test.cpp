#include "core/ops/cross_entropy/cross_entropy.h"

#include "tests/support/op_test.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

struct Problem {
  Tensor x, weight, targets;
};

Problem make_problem(DType dtype, int64_t tokens, int64_t vocab, int64_t dim, double magnitude) {
  Problem out{test::normal(dtype, {tokens, dim}, 1, magnitude), test::normal(dtype, {vocab, dim}, 2),
              Tensor(DType::i32, {tokens})};
  const CounterRng rng(3, 3);
  for (int64_t t = 0; t < tokens; ++t) {
    test::set(out.targets, t, static_cast<double>(rng.below(static_cast<uint64_t>(t), static_cast<uint64_t>(vocab))));
  }
  return out;
}

struct Textbook {
  std::vector<double> loss, dx, dweight;
};

Textbook textbook(const Problem& problem, double grad_scale) {
  const int64_t tokens = problem.x->size(0), dim = problem.x->size(1), vocab = problem.weight->size(0);
  const auto x = test::values(problem.x), w = test::values(problem.weight);
  Textbook out{std::vector<double>(static_cast<size_t>(tokens)), std::vector<double>(x.size()),
               std::vector<double>(w.size())};
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> p(static_cast<size_t>(vocab));
    const auto* row = x.data() + t * dim;
    double largest = -1e300, total = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      double logit = 0;
      for (int64_t d = 0; d < dim; ++d) logit += row[d] * w[static_cast<size_t>(v * dim + d)];
      p[static_cast<size_t>(v)] = logit;
      largest = std::max(largest, logit);
    }
    const auto target = static_cast<size_t>(test::get(problem.targets, t));
    const double target_logit = p[target];
    for (double& value : p) total += value = std::exp(value - largest);
    out.loss[static_cast<size_t>(t)] = largest - target_logit + std::log(total);
    for (int64_t v = 0; v < vocab; ++v) {
      const double g =
          grad_scale * (p[static_cast<size_t>(v)] / total - (static_cast<size_t>(v) == target ? 1.0 : 0.0));
      for (int64_t d = 0; d < dim; ++d) {
        out.dx[static_cast<size_t>(t * dim + d)] += g * w[static_cast<size_t>(v * dim + d)];
        out.dweight[static_cast<size_t>(v * dim + d)] += g * row[d];
      }
    }
  }
  return out;
}

double error_against(const TensorView& got, const std::vector<double>& want, double factor = 1.0) {
  double difference = 0, size = 1e-30;
  for (int64_t n = 0; n < got.num_elements(); ++n) {
    const double w = factor * want[static_cast<size_t>(n)], d = std::abs(test::get(got, n) - w);
    if (std::isnan(d)) return d;
    difference = std::max(difference, d);
    size = std::max(size, std::abs(w));
  }
  return difference / size;
}

void check(OpContext& ctx, DType dtype, int64_t tokens, int64_t vocab, int64_t dim, double magnitude,
           double loss_tolerance, double tolerance) {
  SCOPED_TRACE(
      fmt::format("{} tokens {}, vocab {}, dim {}, magnitude {}", name_of(dtype), tokens, vocab, dim, magnitude));
  const Problem problem = make_problem(dtype, tokens, vocab, dim, magnitude);
  const DType acc = accumulation_dtype(dtype);
  const double grad_scale = 1.0 / static_cast<double>(tokens);
  const Textbook want = textbook(problem, grad_scale);
  Tensor only_loss = test::poisoned(acc, {tokens}), loss = test::poisoned(acc, {tokens});
  Tensor dx = test::poisoned(dtype, {tokens, dim}), dweight = test::zeros(acc, {vocab, dim});
  linear_cross_entropy(ctx, {problem.x, problem.weight, problem.targets, only_loss, 0.0, {}, {}});
  EXPECT_LE(error_against(only_loss, want.loss), loss_tolerance);
  linear_cross_entropy(ctx, {problem.x, problem.weight, problem.targets, loss, grad_scale, dx, dweight});
  EXPECT_EQ(test::values(loss), test::values(only_loss));
  EXPECT_LE(error_against(dx, want.dx), tolerance);
  EXPECT_LE(error_against(dweight, want.dweight), tolerance);
  // dx is overwritten, dweight accumulates.
  linear_cross_entropy(ctx, {problem.x, problem.weight, problem.targets, loss, grad_scale, dx, dweight});
  EXPECT_LE(error_against(dx, want.dx), tolerance);
  EXPECT_LE(error_against(dweight, want.dweight, 2.0), tolerance);
}

TEST(CrossEntropy, ReferenceInDoubleEqualsTheTextbook) {
  TestContext test;
  for (int64_t tokens : {1, 3, 130}) check(test.fastest, DType::f64, tokens, 65, 17, 1.0, 1e-13, 1e-13);
  check(test.fastest, DType::f64, 7, 1, 3, 1.0, 1e-13, 1e-13);  // one word: loss and gradients are zero
}

TEST(CrossEntropy, ReferenceInFloat) {
  TestContext test;
  check(test.reference, DType::f32, 33, 130, 17, 1.0, 2e-6, 1e-5);
  check(test.reference, DType::bf16, 33, 130, 17, 1.0, 2e-6, 0x1p-7);
}

TEST(CrossEntropy, FastestInFloat) {
  TestContext test;
  for (int64_t tokens : {1, 3, 130}) {
    for (int64_t vocab : {2, 17, 130, 1003}) {
      check(test.fastest, DType::f32, tokens, vocab, 24, 1.0, 2e-6, 1e-5);
      check(test.fastest, DType::bf16, tokens, vocab, 24, 1.0, 2e-6, 0x1p-7);
    }
  }
}

// Logits of a hundred: the loss keeps fp32's relative precision of the logits.
TEST(CrossEntropy, LargeLogits) {
  TestContext test;
  check(test.fastest, DType::f64, 20, 130, 64, 12.0, 1e-13, 1e-11);
  check(test.fastest, DType::f32, 20, 130, 64, 12.0, 1e-6, 1e-3);
  check(test.fastest, DType::bf16, 20, 130, 64, 12.0, 1e-6, 0x1p-7);
}

// So many words that the tokens are cut into pieces, the last one shorter.
TEST(CrossEntropy, PiecesThatDoNotDivideTheTokens) {
  TestContext test;
  const int64_t vocab = 70001, tokens = 515, dim = 2;
  const Problem problem = make_problem(DType::f32, tokens, vocab, dim, 1.0);
  Tensor loss = test::poisoned(DType::f32, {tokens}), dx = test::poisoned(DType::f32, {tokens, dim});
  Tensor dweight = test::zeros(DType::f32, {vocab, dim});
  linear_cross_entropy(test.fastest, {problem.x, problem.weight, problem.targets, loss, 1.0, dx, dweight});
  EXPECT_LT(test.scratch.peak_bytes(), tokens * vocab * 4);  // the logits never existed whole
  // A few tokens at a time, the same numbers.
  Tensor few_loss = test::poisoned(DType::f32, {tokens}), few_dx = test::poisoned(DType::f32, {tokens, dim});
  Tensor sum = test::zeros(DType::f32, {vocab, dim});
  for (int64_t begin = 0; begin < tokens; begin += 37) {
    const int64_t end = std::min(begin + 37, tokens);
    linear_cross_entropy(
        test.fastest,
        {problem.x.view().slice(0, begin, end), problem.weight, problem.targets.view().slice(0, begin, end),
         few_loss.view().slice(0, begin, end), 1.0, few_dx.view().slice(0, begin, end), sum});
  }
  EXPECT_LT(test::relative_error(loss, few_loss), 1e-6);
  EXPECT_LT(test::relative_error(dx, few_dx), 1e-5);
  EXPECT_LT(test::relative_error(dweight, sum), 1e-5);
}

TEST(CrossEntropy, GradientsEqualFiniteDifferences) {
  TestContext test;
  const int64_t tokens = 6, vocab = 11, dim = 5;
  const Problem problem = make_problem(DType::f64, tokens, vocab, dim, 1.0);
  Tensor loss(DType::f64, {tokens}), dx(DType::f64, {tokens, dim}), dweight(DType::f64, {vocab, dim});
  linear_cross_entropy(test.fastest, {problem.x, problem.weight, problem.targets, loss, 0.25, dx, dweight});
  const auto objective = [&] {
    linear_cross_entropy(test.fastest, {problem.x, problem.weight, problem.targets, loss, 0.0, {}, {}});
    double sum = 0;
    for (double value : test::values(loss)) sum += 0.25 * value;
    return sum;
  };
  const std::vector<std::pair<TensorView, TensorView>> pairs = {{problem.x, dx}, {problem.weight, dweight}};
  for (const auto& [view, gradient] : pairs) {
    for (int64_t n = 0; n < view.num_elements(); ++n) {
      const double value = test::get(view, n), h = 1e-6;
      test::set(view, n, value + h);
      const double above = objective();
      test::set(view, n, value - h);
      const double below = objective();
      test::set(view, n, value);
      EXPECT_NEAR(test::get(gradient, n), (above - below) / (2 * h), 1e-8);
    }
  }
}

TEST(CrossEntropy, CatchesTargetsOutOfRangeAndShapesThatDisagree) {
  TestContext test;
  const Problem problem = make_problem(DType::f32, 4, 9, 3, 1.0);
  Tensor loss = test::poisoned(DType::f32, {4}), dx(DType::f32, {4, 3}), dweight(DType::f32, {9, 3});
  const auto run = [&](const TensorView& targets, const TensorView& dx_view, const TensorView& dweight_view) {
    linear_cross_entropy(test.fastest, {problem.x, problem.weight, targets, loss, 1.0, dx_view, dweight_view});
  };
  EXPECT_NO_THROW(run(problem.targets, dx, dweight));
  EXPECT_THROW(run(problem.targets, dx, {}), InternalError);
  EXPECT_THROW(run(problem.targets, {}, dweight), InternalError);
  EXPECT_THROW(run(problem.targets, dweight, dweight), InternalError);
  EXPECT_THROW(run(problem.targets.view().slice(0, 0, 3), dx, dweight), InternalError);
  for (double wrong : {-1.0, 9.0}) {
    Tensor targets = test::to(DType::i32, problem.targets);
    test::set(targets, 2, wrong);
    EXPECT_THROW(run(targets, dx, dweight), InternalError);
  }
}

}  // namespace
}  // namespace lamina::ops
