#include "parallel/expert/exchange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <numeric>
#include <optional>
#include <set>

#include "parallel/comm/thread.h"
#include "tests/support/op_test.h"

namespace lamina::expert {
namespace {

using ops::GradMode;
using test::get;
using test::Tensor;

// Choices are a function of (micro-batch, rank), so that every rank knows what all the others do.
struct Case {
  int num_ranks = 1;
  int64_t num_experts = 12;
  int64_t k = 1;
  int64_t dim = 5;
  DType dtype = DType::f32;
  enum class Kind { random, hot, empty_ranks, no_tokens } kind = Kind::random;

  int64_t tokens(int step, int rank) const {
    if (kind == Kind::no_tokens || (kind == Kind::empty_ranks && rank % 2 == 1)) return 0;
    return 1 + static_cast<int64_t>(CounterRng(3, static_cast<uint64_t>(step)).below(static_cast<uint64_t>(rank), 40));
  }
  // k distinct experts per token; `hot`: the first k ones, for all.
  std::vector<int32_t> chosen(int step, int rank) const {
    std::vector<int32_t> out;
    const CounterRng rng(17 + static_cast<uint64_t>(step), static_cast<uint64_t>(rank));
    for (int64_t t = 0; t < tokens(step, rank); ++t) {
      std::vector<int32_t> order(static_cast<size_t>(num_experts));
      std::iota(order.begin(), order.end(), 0);
      for (size_t i = 0; i < static_cast<size_t>(k) && kind != Kind::hot; ++i) {
        const uint64_t draw = rng.below(static_cast<uint64_t>(t * num_experts) + i, order.size() - i);
        std::swap(order[i], order[i + draw]);
      }
      out.insert(out.end(), order.begin(), order.begin() + k);
    }
    return out;
  }
  int64_t rank_of(int32_t expert) const { return expert / (num_experts / num_ranks); }
  // Tokens of `source` that have an expert on `destination`, counted by sets.
  int64_t rows(int step, int source, int destination) const {
    const std::vector<int32_t> all = chosen(step, source);
    std::set<int64_t> found;
    for (size_t c = 0; c < all.size(); ++c)
      if (rank_of(all[c]) == destination) found.insert(static_cast<int64_t>(c) / k);
    return static_cast<int64_t>(found.size());
  }
};

DType acc_of(DType dtype) {
  return accumulation_dtype(dtype);
}
double factor(int64_t expert) {
  return 1 + static_cast<double>(expert % 7) / 4;
}

// One micro-batch: what a layer keeps from forward to backward.
class MicroBatch {
 public:
  MicroBatch(const Case& the_case, Exchange& exchange, int rank, int step)
      : case_(the_case),
        exchange_(exchange),
        rank_(rank),
        step_(step),
        tokens_(case_.tokens(step, rank)),
        chosen_(DType::i32, {tokens_, case_.k}),
        weights_(weights_of(rank)),
        wide_(test::normal(case_.dtype, {tokens_, case_.dim + 3}, salt(rank, 2))),
        dy_(test::normal(case_.dtype, {tokens_, case_.dim}, salt(rank, 3))) {
    const std::vector<int32_t> chosen = case_.chosen(step, rank);
    for (size_t c = 0; c < chosen.size(); ++c) test::set(chosen_, static_cast<int64_t>(c), chosen[c]);
  }

  void start(ops::OpContext& ctx) {
    route_ = exchange_.route(chosen_, lists_, ctx.stream);
    for (int r = 0; r < case_.num_ranks; ++r) {
      EXPECT_EQ(route_.plan.rows[static_cast<size_t>(r)], case_.rows(step_, rank_, r));
      EXPECT_EQ(route_.received[static_cast<size_t>(r)], case_.rows(step_, r, rank_));
    }
    local_chosen_.emplace(DType::i32, Shape{route_.num_received, case_.k});
    local_weights_.emplace(test::poisoned(acc_of(case_.dtype), {route_.num_received, case_.k}));
    packed_.emplace(test::poisoned(case_.dtype, {route_.num_sent(), case_.dim}));
    received_.emplace(test::poisoned(case_.dtype, {route_.num_received, case_.dim}));
    pending_ = exchange_.dispatch(ctx, route_, x(), *packed_, *received_);
    exchange_.send_choices(ctx, route_, chosen_, weights_, *local_chosen_, *local_weights_);
  }

  // The sum over a token's experts of weight * factor * row, against the same sum taken directly.
  void finish_forward(ops::OpContext& ctx) {
    pending_.wait();
    check_choices();
    const Tensor rows = scaled_rows(*received_);
    const Tensor returned = test::poisoned(case_.dtype, {route_.num_sent(), case_.dim});
    exchange_.give_back(ctx, route_, rows, returned).wait();
    const Tensor y = test::poisoned(case_.dtype, {tokens_, case_.dim});
    exchange_.add_returned(ctx, route_, returned, y, GradMode::overwrite);
    expect_scaled(y, x(), 0);
    exchange_.add_returned(ctx, route_, returned, y, GradMode::accumulate);
    expect_scaled(y, x(), 1);
  }

  // dy travels as x did: dx = sum of weight * factor * dy, and the weight's gradient is factor * <dy, x>.
  void backward(ops::OpContext& ctx) {
    const Tensor packed = test::poisoned(case_.dtype, {route_.num_sent(), case_.dim});
    const Tensor received = test::poisoned(case_.dtype, {route_.num_received, case_.dim});
    exchange_.dispatch(ctx, route_, dy_, packed, received).wait();
    const Tensor rows = scaled_rows(received);
    const Tensor returned = test::poisoned(case_.dtype, {route_.num_sent(), case_.dim});
    comm::Request back = exchange_.give_back(ctx, route_, rows, returned);

    Tensor local(acc_of(case_.dtype), {route_.num_received, case_.k});
    for (int64_t c = 0; c < route_.num_received * case_.k; ++c) {
      const auto expert = static_cast<int64_t>(get(*local_chosen_, c));
      test::set(local, c, expert < 0 ? 1e30 : expert_factor(expert) * dot(received, *received_, c / case_.k));
    }
    const Tensor dweights = test::poisoned(acc_of(case_.dtype), {tokens_, case_.k});
    exchange_.give_back_weights(ctx, route_, local, chosen_, dweights);
    for (int64_t c = 0; c < tokens_ * case_.k; ++c) {
      const double want = factor(static_cast<int64_t>(get(chosen_, c))) * dot(dy_, x(), c / case_.k);
      ASSERT_NEAR(get(dweights, c), want, test::epsilon_of(acc_of(case_.dtype)) * std::abs(want));
    }
    back.wait();
    const Tensor dx = test::poisoned(case_.dtype, {tokens_, case_.dim});
    exchange_.add_returned(ctx, route_, returned, dx, GradMode::overwrite);
    expect_scaled(dx, dy_, 0);
  }

  // Rows that this rank sends to others in one dispatch and one give_back.
  int64_t rows_to_others() const {
    int64_t rows = 0;
    for (int r = 0; r < case_.num_ranks; ++r)
      if (r != rank_) rows += case_.rows(step_, rank_, r) + case_.rows(step_, r, rank_);
    return rows;
  }
  const Exchange::Route& route() const { return route_; }

 private:
  uint64_t salt(int rank, uint64_t what) const { return static_cast<uint64_t>(step_ * 1000 + rank * 10) + what; }
  Tensor weights_of(int rank) const {
    return test::normal(acc_of(case_.dtype), {case_.tokens(step_, rank), case_.k}, salt(rank, 1));
  }
  TensorView x() const { return wide_.view().slice(1, 1, case_.dim + 1); }  // rows with a stride of their own
  double expert_factor(int64_t local) const { return factor(exchange_.first_expert() + local); }

  double dot(const TensorView& a, const TensorView& b, int64_t row) const {
    double sum = 0;
    for (int64_t d = 0; d < case_.dim; ++d) sum += get(a, row * case_.dim + d) * get(b, row * case_.dim + d);
    return sum;
  }

  // Row r comes from the rank and token that the senders' choices say, with their list of experts of this rank.
  void check_choices() const {
    int64_t row = 0;
    for (int source = 0; source < case_.num_ranks; ++source) {
      const std::vector<int32_t> chosen = case_.chosen(step_, source);
      const Tensor weights = weights_of(source);
      const auto k = static_cast<size_t>(case_.k);
      for (size_t t = 0; t < chosen.size() / k; ++t) {
        std::vector<double> want, got;
        for (size_t j = 0; j < k; ++j) {
          const int32_t expert = chosen[t * k + j];
          want.push_back(case_.rank_of(expert) == rank_ ? static_cast<double>(expert - exchange_.first_expert()) : -1);
        }
        if (std::all_of(want.begin(), want.end(), [](double e) { return e < 0; })) continue;
        for (int64_t j = 0; j < case_.k; ++j) {
          got.push_back(get(*local_chosen_, row * case_.k + j));
          const double weight = get(*local_weights_, row * case_.k + j);
          EXPECT_EQ(weight, got.back() < 0 ? 0.0 : get(weights, static_cast<int64_t>(t) * case_.k + j));
        }
        ASSERT_EQ(got, want) << "row " << row << " from token " << t << " of rank " << source;
        ++row;
      }
    }
    EXPECT_EQ(row, route_.num_received);
  }

  Tensor scaled_rows(const TensorView& rows) const {
    Tensor out = test::poisoned(case_.dtype, rows.shape);
    for (int64_t r = 0; r < rows.size(0); ++r) {
      double scale = 0;
      for (int64_t j = 0; j < case_.k; ++j) {
        const auto expert = static_cast<int64_t>(get(*local_chosen_, r * case_.k + j));
        if (expert >= 0) scale += get(*local_weights_, r * case_.k + j) * expert_factor(expert);
      }
      for (int64_t d = 0; d < case_.dim; ++d) test::set(out, r * case_.dim + d, scale * get(rows, r * case_.dim + d));
    }
    return out;
  }

  // y is the sum, `times` + 1 times. Each rank's share is rounded once, and so is each sum of shares.
  void expect_scaled(const TensorView& y, const TensorView& from, int times) const {
    for (int64_t t = 0; t < tokens_; ++t) {
      double scale = 0, size = 0;
      for (int64_t j = 0; j < case_.k; ++j) {
        const double term =
            get(weights_, t * case_.k + j) * factor(static_cast<int64_t>(get(chosen_, t * case_.k + j)));
        scale += term;
        size += std::abs(term);
      }
      for (int64_t d = 0; d < case_.dim; ++d) {
        const double value = get(from, t * case_.dim + d) * (1 + times);
        const double rounding = test::epsilon_of(case_.dtype) + case_.num_ranks * test::epsilon_of(acc_of(case_.dtype));
        ASSERT_NEAR(get(y, t * case_.dim + d), scale * value, 2 * rounding * size * std::abs(value) + 1e-300)
            << "token " << t << " of rank " << rank_ << " in step " << step_;
      }
    }
  }

  const Case& case_;
  Exchange& exchange_;
  int rank_, step_;
  int64_t tokens_;
  Arena lists_{Device{}, nullptr, "test"};
  Tensor chosen_, weights_, wide_, dy_;
  Exchange::Route route_;
  comm::Request pending_;
  std::optional<Tensor> local_chosen_, local_weights_, packed_, received_;
};

void check_loop(const Case& the_case, int num_steps) {
  comm::run_threads(the_case.num_ranks, [&](comm::Communicator& group) {
    test::TestContext context;
    Exchange exchange(group, the_case.num_experts);
    EXPECT_EQ(exchange.num_ranks(), group.size());
    EXPECT_EQ(exchange.first_expert(), group.rank() * the_case.num_experts / group.size());
    for (int step = 0; step < num_steps; ++step) {
      MicroBatch batch(the_case, exchange, group.rank(), step);
      batch.start(context.fastest);
      batch.finish_forward(context.fastest);
      const int64_t row_bytes = batch.rows_to_others() * the_case.dim * size_of(the_case.dtype);
      EXPECT_EQ(exchange.take_row_bytes(), row_bytes);
      batch.backward(context.fastest);
      EXPECT_EQ(exchange.take_row_bytes(), row_bytes);
      EXPECT_EQ(exchange.take_row_bytes(), 0);
    }
    EXPECT_EQ(context.scratch.used_bytes(), 0);
  });
}

class ExpertExchange : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, ExpertExchange, ::testing::Values(1, 2, 3, 4));

TEST_P(ExpertExchange, ForwardAndBackwardEqualTheSumOverExperts) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f64})
    for (int64_t k : {1, 2, 8, 12}) check_loop({.num_ranks = GetParam(), .k = k, .dtype = dtype}, 2);
}

TEST_P(ExpertExchange, RanksThatReceiveOrSendNothing) {
  for (auto kind : {Case::Kind::hot, Case::Kind::empty_ranks, Case::Kind::no_tokens})
    check_loop({.num_ranks = GetParam(), .k = 3, .kind = kind}, 2);
}

TEST_P(ExpertExchange, ManySteps) {
  check_loop({.num_ranks = GetParam(), .k = 4, .dim = 1}, 40);
}

// Forward of several micro-batches, each dispatched before the one before has arrived, then backward from the last one.
TEST_P(ExpertExchange, SeveralRoutesAreUnderWay) {
  const Case the_case{.num_ranks = GetParam(), .k = 5, .dim = 33};
  comm::run_threads(the_case.num_ranks, [&](comm::Communicator& group) {
    test::TestContext context;
    Exchange exchange(group, the_case.num_experts);
    std::deque<MicroBatch> batches;
    for (int step = 0; step < 3; ++step)
      batches.emplace_back(the_case, exchange, group.rank(), step).start(context.fastest);
    for (MicroBatch& batch : batches) batch.finish_forward(context.fastest);
    for (auto batch = batches.rbegin(); batch != batches.rend(); ++batch) batch->backward(context.fastest);
  });
}

// take_row_bytes() against what the communicator has counted.
TEST_P(ExpertExchange, CountsTheBytesOfRows) {
  const Case the_case{.num_ranks = GetParam(), .k = 4};
  comm::run_threads(the_case.num_ranks, [&](comm::Communicator& group) {
    test::TestContext context;
    Exchange exchange(group, the_case.num_experts);
    MicroBatch batch(the_case, exchange, group.rank(), 7);
    batch.start(context.fastest);
    batch.finish_forward(context.fastest);
    exchange.take_row_bytes();
    group.take_bytes_sent();
    const Exchange::Route& route = batch.route();
    const Tensor rows = test::normal(DType::f64, {route.num_received, 11}, 5);
    const Tensor returned = test::poisoned(DType::f64, {route.num_sent(), 11});
    exchange.give_back(context.fastest, route, rows, returned).wait();
    EXPECT_EQ(exchange.take_row_bytes(), group.take_bytes_sent());
  });
}

TEST(ExpertExchangeAlone, CopiesNothingThatLiesWhereItBelongs) {
  const auto group = comm::make_self_communicator();
  test::TestContext context;
  Exchange exchange(*group, 4);
  Tensor chosen(DType::i32, {3, 2});
  for (int64_t c = 0; c < 6; ++c) test::set(chosen, c, static_cast<double>(c % 4));
  Exchange::Route made = exchange.route(chosen, context.scratch, context.stream);
  const Exchange::Route route = std::move(made);
  EXPECT_EQ(route.plan.token, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(route.plan.position, (std::vector<int32_t>{0, 1, 2}));
  const Tensor x = test::normal(DType::f32, {3, 4}, 1), received = test::poisoned(DType::f32, {3, 4});
  exchange.dispatch(context.fastest, route, x, {}, received).wait();
  EXPECT_EQ(test::values(received), test::values(x));
  exchange.give_back(context.fastest, route, received, received).wait();
  EXPECT_EQ(exchange.take_row_bytes(), 0);
  EXPECT_EQ(group->take_bytes_sent(), 0);
}

// ---- the plan ----

TEST(SendPlan, ListsEveryTokenOnceForEachDistinctRank) {
  for (int num_ranks : {1, 2, 3, 4, 6, 12}) {
    for (int64_t k = 1; k <= 12; ++k) {
      const Case the_case{.num_ranks = num_ranks, .k = k};
      const std::vector<int32_t> chosen = the_case.chosen(0, 0);
      const SendPlan plan = make_send_plan(chosen, k, 12, num_ranks);
      std::vector<int32_t> tokens, positions(static_cast<size_t>(the_case.tokens(0, 0) * num_ranks), -1);
      for (int rank = 0; rank < num_ranks; ++rank) {
        std::set<int32_t> wanted;
        for (size_t c = 0; c < chosen.size(); ++c)
          if (the_case.rank_of(chosen[c]) == rank) wanted.insert(static_cast<int32_t>(static_cast<int64_t>(c) / k));
        for (int32_t t : wanted) {
          positions[static_cast<size_t>(t) * static_cast<size_t>(num_ranks) + static_cast<size_t>(rank)] =
              static_cast<int32_t>(tokens.size());
          tokens.push_back(t);
        }
        EXPECT_EQ(plan.rows[static_cast<size_t>(rank)], static_cast<int64_t>(wanted.size()));
      }
      EXPECT_EQ(plan.token, tokens);
      EXPECT_EQ(plan.position, positions);
      EXPECT_EQ(plan.num_rows(), static_cast<int64_t>(tokens.size()));
    }
  }
}

TEST(SendPlan, OfNoTokensIsEmpty) {
  const SendPlan plan = make_send_plan({}, 8, 16, 4);
  EXPECT_EQ(plan.rows, (std::vector<int64_t>{0, 0, 0, 0}));
  EXPECT_EQ(plan.num_rows(), 0);
  EXPECT_TRUE(plan.position.empty());
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const InternalError& failure) {
    return failure.what();
  }
  return "nothing was thrown";
}

TEST(SendPlan, RefusesWhatCanNotBe) {
  using ::testing::HasSubstr;
  const std::vector<int32_t> chosen{0, 5, 3, 8};
  const auto plan = [&](int64_t k, int64_t experts, int ranks) {
    return message_of([&] { make_send_plan(chosen, k, experts, ranks); });
  };
  EXPECT_EQ(plan(2, 9, 3), "nothing was thrown");
  EXPECT_THAT(plan(2, 8, 2), HasSubstr("choice 1 of token 1 is expert 8 of 8"));
  EXPECT_THAT(plan(2, 9, 2), HasSubstr("9 experts on 2 ranks"));
  EXPECT_THAT(plan(2, 9, 0), HasSubstr("9 experts on 0 ranks"));
  EXPECT_THAT(plan(3, 9, 3), HasSubstr("4 choices of 3 per token"));
  EXPECT_THAT(plan(0, 9, 3), HasSubstr("4 choices of 0 per token"));
  EXPECT_THAT(message_of([] { make_send_plan(std::vector<int32_t>{-1}, 1, 9, 3); }), HasSubstr("expert -1 of 9"));
}

TEST(ExpertExchangeAlone, RefusesOperandsThatDoNotFitTheRoute) {
  using ::testing::HasSubstr;
  const auto comms = comm::make_thread_communicators(2);
  EXPECT_THAT(message_of([&] { Exchange(*comms[0], 5); }), HasSubstr("5 experts on 2 ranks"));
  const auto group = comm::make_self_communicator();
  test::TestContext context;
  ops::OpContext& ctx = context.fastest;
  Exchange exchange(*group, 4);
  const Tensor chosen = test::zeros(DType::i32, {3, 2}), weights = test::zeros(DType::f32, {3, 2});
  test::fill(chosen, 1);
  const Tensor three = test::zeros(DType::f32, {3, 4}), four = test::zeros(DType::f32, {4, 4});
  const Tensor halves = test::zeros(DType::bf16, {3, 2});
  EXPECT_THAT(message_of([&] { exchange.route(weights, ctx.scratch, ctx.stream); }), HasSubstr("chosen is"));
  EXPECT_THAT(message_of([&] { exchange.route(chosen.view().reshaped({6}), ctx.scratch, ctx.stream); }),
              HasSubstr("[tokens, k]"));
  EXPECT_THAT(message_of([&] { exchange.route(chosen.view().transposed(), ctx.scratch, ctx.stream); }),
              HasSubstr("chosen"));
  const Exchange::Route route = exchange.route(chosen, ctx.scratch, ctx.stream);
  EXPECT_THAT(message_of([&] { exchange.dispatch(ctx, route, four, {}, three); }), HasSubstr("x is"));
  EXPECT_THAT(message_of([&] { exchange.dispatch(ctx, route, three, {}, four); }), HasSubstr("received is"));
  EXPECT_THAT(message_of([&] { exchange.give_back(ctx, route, four, three); }), HasSubstr("rows is"));
  EXPECT_THAT(message_of([&] { exchange.give_back(ctx, route, three, four); }), HasSubstr("returned is"));
  EXPECT_THAT(message_of([&] { exchange.add_returned(ctx, route, three, four, GradMode::overwrite); }),
              HasSubstr("y is"));
  EXPECT_THAT(message_of([&] { exchange.send_choices(ctx, route, chosen, halves, chosen, halves); }),
              HasSubstr("weights is bf16"));
  EXPECT_THAT(message_of([&] { exchange.send_choices(ctx, route, chosen, weights, chosen, three); }),
              HasSubstr("local_weights is"));
  EXPECT_THAT(message_of([&] { exchange.give_back_weights(ctx, route, three, chosen, weights); }),
              HasSubstr("local_weights is"));
}

}  // namespace
}  // namespace lamina::expert
