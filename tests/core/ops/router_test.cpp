#include "core/ops/router/router.h"

#include <functional>
#include <limits>
#include <set>

#include "core/device/cpu/parallel_for.h"
#include "tests/support/mirror.h"

namespace lamina::ops {
namespace {

using test::Tensor;
using test::TestContext;

// Outputs of a forward call and the call itself.
struct Routed {
  Tensor scores, chosen, weights, fractions, balance;

  Routed(DType acc, int64_t tokens, int64_t experts, int64_t k, int64_t sequences)
      : scores(test::poisoned(acc, {tokens, experts})),
        chosen(DType::i32, {tokens, k}),
        weights(test::poisoned(acc, {tokens, k})),
        fractions(test::poisoned(acc, {sequences, experts})),
        balance(test::poisoned(acc, {sequences})) {
    test::fill(chosen, -7);
  }
  void run(OpContext& ctx, const TensorView& logits, const TensorView& bias, double scaling, bool renormalize) const {
    router_forward(ctx, {logits, bias, scaling, renormalize, scores, chosen, weights, fractions, balance});
  }
};

// Derivatives of <weights, c> + scale * the sum of balances, with the choice held fixed (h is far below the gaps).
TEST(Router, ReferenceGradientEqualsFiniteDifferences) {
  TestContext test;
  for (const bool renormalize : {true, false}) {
    for (const int64_t k : {int64_t{1}, int64_t{3}, int64_t{7}}) {
      const int64_t tokens = 10, experts = 7, sequences = 2;
      const double scaling = 2.446, scale = 0.37, h = 1e-6;
      const Tensor logits = test::normal(DType::f64, {tokens, experts}, 1),
                   bias = test::normal(DType::f64, {experts}, 2), d_weights = test::normal(DType::f64, {tokens, k}, 3),
                   d_logits = test::poisoned(DType::f64, {tokens, experts});
      const Routed out(DType::f64, tokens, experts, k, sequences);
      const auto objective = [&] {
        out.run(test.fastest, logits, bias, scaling, renormalize);
        double sum = 0;
        for (int64_t n = 0; n < tokens * k; ++n) sum += test::get(out.weights, n) * test::get(d_weights, n);
        for (int64_t n = 0; n < sequences; ++n) sum += scale * test::get(out.balance, n);
        return sum;
      };
      objective();
      router_backward(test.fastest,
                      {out.scores, out.chosen, scaling, renormalize, d_weights, out.fractions, scale, d_logits});
      for (int64_t n = 0; n < tokens * experts; ++n) {
        const double value = test::get(logits, n);
        test::set(logits, n, value + h);
        const double above = objective();
        test::set(logits, n, value - h);
        const double below = objective();
        test::set(logits, n, value);
        EXPECT_NEAR(test::get(d_logits, n), (above - below) / (2 * h), 1e-8) << n;
      }
    }
  }
}

TEST(Router, TheBiasSelectsAndDoesNotWeigh) {
  TestContext test;
  for (OpContext* ctx : {&test.fastest, &test.reference}) {
    const Tensor logits = test::zeros(DType::f32, {1, 20}), bias = test::zeros(DType::f32, {20});
    for (int64_t i = 0; i < 20; ++i) {
      test::set(logits, i, -0.1 * static_cast<double>(i));
      test::set(bias, i, 0);
    }
    test::set(bias, 17, 3.0);
    test::set(bias, 0, -3.0);
    const Routed out(DType::f32, 1, 20, 2, 1);
    out.run(*ctx, logits, bias, 1.5, true);
    EXPECT_EQ(test::values(out.chosen), (std::vector<double>{17, 1}));
    const double a = 1 / (1 + std::exp(1.7)), b = 1 / (1 + std::exp(0.1));
    EXPECT_NEAR(test::get(out.weights, 0), 1.5 * a / (a + b), 1e-6);
    EXPECT_NEAR(test::get(out.weights, 1), 1.5 * b / (a + b), 1e-6);
    // f counts the unbiased choice: experts 0 and 1.
    for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(test::get(out.fractions, i), i < 2 ? 10 : 0);
    out.run(*ctx, logits, bias, 1.5, false);
    EXPECT_NEAR(test::get(out.weights, 0), 1.5 * a, 1e-6);
  }
}

TEST(Router, TiesGoToTheLowerIndex) {
  TestContext test;
  for (OpContext* ctx : {&test.fastest, &test.reference}) {
    for (const int64_t experts : {1, 5, 16, 33, 100}) {
      for (const int64_t k : {int64_t{1}, std::min<int64_t>(experts, 4), experts}) {
        const Tensor logits = test::zeros(DType::f32, {3, experts}), bias = test::zeros(DType::f32, {experts});
        test::fill(logits, 0.25);
        test::fill(bias, 0.0);
        for (int64_t i = 0; i < experts; ++i) test::set(logits, 2 * experts + i, static_cast<double>(i % 2));
        const Routed out(DType::f32, 3, experts, k, 1);
        out.run(*ctx, logits, bias, 1.0, true);
        for (int64_t j = 0; j < k; ++j) {
          EXPECT_EQ(test::get(out.chosen, j), j);
          EXPECT_EQ(test::get(out.chosen, k + j), j);
          const int64_t odd = experts / 2;  // the third token prefers odd experts
          EXPECT_EQ(test::get(out.chosen, 2 * k + j), j < odd ? 2 * j + 1 : 2 * (j - odd));
        }
      }
    }
  }
}

// Not a number is no reason for an index outside the range, nor for one expert twice.
TEST(Router, NotANumberStillChoosesDistinctExperts) {
  TestContext test;
  for (OpContext* ctx : {&test.fastest, &test.reference}) {
    const Tensor logits = test::normal(DType::f32, {2, 40}, 1), bias = test::zeros(DType::f32, {40});
    test::fill(bias, 0.0);
    for (int64_t i = 0; i < 40; ++i) test::set(logits, i, std::numeric_limits<double>::quiet_NaN());
    test::set(logits, 40 + 5, std::numeric_limits<double>::quiet_NaN());
    const Routed out(DType::f32, 2, 40, 6, 1);
    out.run(*ctx, logits, bias, 1.0, true);
    for (int64_t t = 0; t < 2; ++t) {
      std::set<double> chosen;
      for (int64_t j = 0; j < 6; ++j) chosen.insert(test::get(out.chosen, t * 6 + j));
      EXPECT_EQ(chosen.size(), 6u);
      EXPECT_GE(*chosen.begin(), 0);
      EXPECT_LT(*chosen.rbegin(), 40);
      EXPECT_TRUE(t == 0 || !chosen.contains(5));
    }
  }
}

// Compared where no two scores are so near that fp32 could order them otherwise: distinct multiples of 1/16.
void fill_apart(const TensorView& logits, uint64_t stream) {
  const CounterRng rng(7, stream);
  const int64_t experts = logits.size(1);
  for (int64_t t = 0; t < logits.size(0); ++t) {
    std::vector<int64_t> order(static_cast<size_t>(experts));
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
    for (size_t i = order.size(); i > 1; --i) {
      const auto other =
          static_cast<size_t>(rng.uniform(static_cast<uint64_t>(t * experts) + i) * static_cast<double>(i));
      std::swap(order[i - 1], order[std::min(other, i - 1)]);
    }
    for (size_t i = 0; i < order.size(); ++i) {
      test::set(logits, t * experts + static_cast<int64_t>(i),
                6.0 * (static_cast<double>(order[i]) / static_cast<double>(experts) - 0.5));
    }
  }
}

TEST(Router, FastestMatchesFloat64) {
  TestContext test;
  struct Case {
    int64_t tokens, experts, k, sequences;
  };
  for (const auto& [tokens, experts, k, sequences] :
       {Case{1, 1, 1, 1}, Case{6, 5, 2, 3}, Case{64, 16, 4, 2}, Case{40, 64, 8, 1}, Case{33, 100, 100, 3},
        Case{24, 256, 8, 4}, Case{10, 512, 17, 2}, Case{2, 40000, 3, 1}}) {
    for (const DType compute : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("{} experts, {} chosen, {}", experts, k, name_of(compute)));
      const Tensor logits = test::zeros(DType::f32, {tokens, experts}), bias = test::zeros(DType::f32, {experts}),
                   d_weights = test::normal(DType::f32, {tokens, k}, 3),
                   d_logits = test::poisoned(compute, {tokens, experts});
      fill_apart(logits, 1);
      for (int64_t i = 0; i < experts; ++i) test::set(bias, i, static_cast<double>(i % 3) / 512);
      const Routed out(DType::f32, tokens, experts, k, sequences);
      out.run(test.fastest, logits, bias, 2.446, true);
      const Routed want(DType::f64, tokens, experts, k, sequences);
      want.run(test.reference, test::to(DType::f64, logits), test::to(DType::f64, bias), 2.446, true);
      EXPECT_EQ(test::values(out.chosen), test::values(want.chosen));
      const double eps = test::epsilon_of(DType::f32), sum = eps * static_cast<double>(16 + experts);
      EXPECT_LE(test::relative_error(out.scores, want.scores), 8 * eps);
      EXPECT_LE(test::relative_error(out.weights, want.weights), sum);
      EXPECT_LE(test::relative_error(out.fractions, want.fractions), 4 * eps);
      EXPECT_LE(test::relative_error(out.balance, want.balance), sum);
      for (const bool balance : {true, false}) {
        const TensorView no_fractions;
        test::poison(d_logits);
        router_backward(test.fastest, {out.scores, out.chosen, 2.446, true, d_weights,
                                       balance ? out.fractions.view() : no_fractions, 0.5, d_logits});
        const Tensor dw64 = test::to(DType::f64, d_weights), d64 = test::poisoned(DType::f64, {tokens, experts});
        router_backward(test.reference, {want.scores, want.chosen, 2.446, true, dw64,
                                         balance ? want.fractions.view() : no_fractions, 0.5, d64});
        // dw - <dw, s> / Z cancels altogether where one expert is all there is.
        EXPECT_LE(test::relative_error(d_logits, d64),
                  experts == 1 ? 1e30 : sum * 8 + (compute == DType::bf16 ? test::epsilon_of(compute) : 0));
        if (experts == 1) {
          EXPECT_NEAR(test::get(d_logits, 0), 0.0, 1e-6);
        }
      }
    }
  }
}

TEST(Router, ScoresMayBeTheLogitsAndThreadsAgree) {
  TestContext test;
  const int64_t tokens = 600, experts = 48, k = 5;
  const Tensor logits = test::normal(DType::f32, {tokens, experts}, 1),
               bias = test::normal(DType::f32, {experts}, 2, 0.1), d_weights = test::normal(DType::f32, {tokens, k}, 3);
  const int threads = cpu::num_threads();
  std::vector<std::vector<double>> results;
  for (const int count : {1, 2, 3}) {
    cpu::set_num_threads(count);
    const Routed out(DType::f32, tokens, experts, k, 3);
    const Tensor in_place = test::to(DType::f32, logits), d_logits = test::poisoned(DType::f32, {tokens, experts});
    out.run(test.fastest, logits, bias, 1.0, true);
    router_backward(test.fastest, {out.scores, out.chosen, 1.0, true, d_weights, out.fractions, 0.1, d_logits});
    router_forward(test.fastest, {in_place, bias, 1.0, true, in_place, out.chosen, out.weights, {}, {}});
    EXPECT_EQ(test::values(in_place), test::values(out.scores));
    results.emplace_back();
    for (const TensorView& view : {out.scores.view(), out.chosen.view(), out.weights.view(), out.fractions.view(),
                                   out.balance.view(), d_logits.view()}) {
      for (const double value : test::values(view)) results.back().push_back(value);
    }
  }
  cpu::set_num_threads(threads);
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

// Counts and entropies against the definition, added to what was there.
TEST(RouterObserve, AddsCountsAndEntropies) {
  TestContext test;
  struct Case {
    int64_t tokens, experts, k;
  };
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (OpContext* ctx : {&test.fastest, &test.reference}) {
      for (const auto& [tokens, experts, k] :
           {Case{1, 1, 1}, Case{9, 5, 3}, Case{300, 64, 8}, Case{37, 515, 33}, Case{3, 9000, 4}}) {
        SCOPED_TRACE(fmt::format("{} tokens, {} experts, {}", tokens, experts, name_of(dtype)));
        const Tensor scores = test::zeros(dtype, {tokens, experts});
        const Tensor chosen(DType::i32, {tokens, k});
        const CounterRng rng(3, static_cast<uint64_t>(experts));
        const Tensor counts(DType::i32, {experts}), fresh = test::zeros(DType::i32, {experts}),
                                                    entropy = test::zeros(DType::f64, {1}),
                                                    only_entropy = test::zeros(DType::f64, {1});
        for (int64_t e = 0; e < experts; ++e) test::set(counts, e, static_cast<double>(10 * e + 7));
        std::vector<double> want = test::values(counts);
        test::set(entropy, 0, 3.25);
        double want_entropy = 0;
        for (int64_t t = 0; t < tokens; ++t) {
          double sum = 0;
          for (int64_t e = 0; e < experts; ++e) {
            const int64_t n = t * experts + e;
            // The second token has a single score, the third none: entropies of zero.
            const bool silent = (t == 1 && e > 0) || t == 2;
            test::set(scores, n, silent ? 0.0 : rng.uniform(static_cast<uint64_t>(n)));
            sum += test::get(scores, n);
          }
          for (int64_t e = 0; e < experts; ++e) {
            const double share = sum > 0 ? test::get(scores, t * experts + e) / sum : 0.0;
            if (share > 0) want_entropy -= share * std::log(share);
          }
          for (int64_t j = 0; j < k; ++j) {
            const int64_t expert = (t * t + j) % experts;
            test::set(chosen, t * k + j, static_cast<double>(expert));
            want[static_cast<size_t>(expert)] += 1;
          }
        }
        router_observe(*ctx, {chosen, scores, counts, entropy});
        EXPECT_EQ(test::values(counts), want);
        // fp32 rounds each of a token's two sums once per expert at most.
        const double eps = test::epsilon_of(dtype) * static_cast<double>(tokens) *
                           (8 + 2 * std::sqrt(static_cast<double>(experts))) *
                           std::log(static_cast<double>(experts) + 2);
        const double found = test::get(entropy, 0);
        EXPECT_NEAR(found, 3.25 + want_entropy, eps);
        router_observe(*ctx, {chosen, scores, fresh, {}});
        router_observe(*ctx, {chosen, scores, counts, only_entropy});
        for (int64_t e = 0; e < experts; ++e)
          EXPECT_EQ(test::get(counts, e), want[static_cast<size_t>(e)] + test::get(fresh, e));
        EXPECT_NEAR(test::get(only_entropy, 0), found - 3.25, 1e-12 * (4 + found));
      }
    }
  }
}

TEST(RouterObserve, NoTokensAndWhatDoesNotFit) {
  TestContext test;
  const Tensor none(DType::f32, {0, 4}), none_chosen(DType::i32, {0, 2});
  const Tensor counts = test::zeros(DType::i32, {4}), few = test::zeros(DType::i32, {3}),
               entropy = test::zeros(DType::f64, {1}), narrow = test::zeros(DType::f32, {1});
  test::set(counts, 3, 4.0);
  test::set(entropy, 0, 7.0);
  router_observe(test.fastest, {none_chosen, none, counts, entropy});
  EXPECT_EQ(test::values(counts), (std::vector<double>{0, 0, 0, 4}));
  EXPECT_EQ(test::get(entropy, 0), 7.0);
  EXPECT_THROW(router_observe(test.fastest, {none_chosen, none, few, entropy}), InternalError);
  EXPECT_THROW(router_observe(test.fastest, {none_chosen, none, counts, narrow}), InternalError);

  const Tensor scores = test::normal(DType::f32, {2, 4}, 1), chosen = test::zeros(DType::i32, {2, 2}),
               longer = test::zeros(DType::i32, {3, 2});
  test::fill(chosen, 0.0);
  EXPECT_NO_THROW(router_observe(test.fastest, {chosen, scores, counts, {}}));
  EXPECT_THROW(router_observe(test.fastest, {longer, scores, counts, {}}), InternalError);
  for (const double wrong : {-1.0, 4.0}) {
    test::set(chosen, 3, wrong);
    EXPECT_THROW(router_observe(test.fastest, {chosen, scores, counts, {}}), InternalError);
  }
}

TEST(Router, NoTokens) {
  TestContext test;
  const Tensor bias = test::zeros(DType::f32, {8});
  const Tensor none(DType::f32, {0, 8}), chosen(DType::i32, {0, 2}), weights(DType::f32, {0, 2});
  EXPECT_NO_THROW(router_forward(test.fastest, {none, bias, 1.0, true, none, chosen, weights, {}, {}}));
  EXPECT_NO_THROW(router_backward(test.fastest, {none, chosen, 1.0, true, weights, {}, 0.0, none}));
}

TEST(Router, RefusesWhatDoesNotFit) {
  TestContext test;
  const Tensor logits = test::normal(DType::f32, {4, 6}, 1), bias = test::zeros(DType::f32, {6}),
               short_bias = test::zeros(DType::f32, {5}), low = test::zeros(DType::bf16, {4, 6});
  const Tensor too_many(DType::i32, {4, 7}), weights7(DType::f32, {4, 7});
  const Routed out(DType::f32, 4, 6, 2, 2), odd(DType::f32, 4, 6, 2, 3);
  test::fill(bias, 0.0);
  EXPECT_NO_THROW(out.run(test.fastest, logits, bias, 1.0, true));
  EXPECT_THROW(out.run(test.fastest, logits, short_bias, 1.0, true), InternalError);
  EXPECT_THROW(out.run(test.fastest, low, bias, 1.0, true), InternalError);
  EXPECT_THROW(odd.run(test.fastest, logits, bias, 1.0, true), InternalError);  // 4 tokens in 3 sequences
  EXPECT_THROW(router_forward(test.fastest, {logits, bias, 1.0, true, out.scores, too_many, weights7, {}, {}}),
               InternalError);
  EXPECT_THROW(
      router_forward(test.fastest, {logits, bias, 1.0, true, out.scores, out.chosen, out.weights, out.fractions, {}}),
      InternalError);
  const Tensor d64 = test::zeros(DType::f64, {4, 6});
  EXPECT_THROW(router_backward(test.fastest, {out.scores, out.chosen, 1.0, true, out.weights, {}, 0.0, d64}),
               InternalError);
  EXPECT_THROW(router_backward(test.fastest, {out.scores, out.chosen, 1.0, true, out.scores, {}, 0.0, out.scores}),
               InternalError);
}

}  // namespace
}  // namespace lamina::ops
