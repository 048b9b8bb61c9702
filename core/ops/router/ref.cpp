#include "core/ops/router/implementations.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/ops/rows.h"

namespace lamina::ops::ref {
namespace {

// The k largest, best first, ties to the lower index. A NaN is larger than nothing.
template <class A>
std::vector<int32_t> largest(const Row<A>& values, size_t k) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int32_t i) {
    const A value = values[static_cast<size_t>(i)];
    return std::isnan(value) ? -std::numeric_limits<A>::infinity() : value;
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) > key(b); });
  order.resize(k);
  return order;
}

// f and P of one sequence, from its rows of scores.
template <class A>
void balance_of_sequence(const RouterForward& args, int64_t sequence) {
  const int64_t num_tokens = args.scores.size(0) / args.fractions.size(0);
  const size_t experts = static_cast<size_t>(args.scores.size(1)), k = static_cast<size_t>(args.chosen.size(1));
  Row<A> count(experts), share(experts), fraction(experts);
  for (int64_t t = sequence * num_tokens; t < (sequence + 1) * num_tokens; ++t) {
    const Row<A> s = load_row<A>(args.scores, t);
    for (const int32_t i : largest(s, k)) count[static_cast<size_t>(i)] += A(1);
    const A total = std::accumulate(s.begin(), s.end(), A(0));
    for (size_t i = 0; i < experts; ++i) share[i] += s[i] / total;
  }
  A balance = 0;
  for (size_t i = 0; i < experts; ++i) {
    fraction[i] = count[i] * static_cast<A>(experts) / (static_cast<A>(k) * static_cast<A>(num_tokens));
    balance += fraction[i] * share[i] / static_cast<A>(num_tokens);
  }
  store_row(args.fractions, sequence, fraction);
  args.balance.as<A>()[sequence] = balance;
}

template <class A>
void forward(const RouterForward& args) {
  const size_t experts = static_cast<size_t>(args.scores.size(1)), k = static_cast<size_t>(args.chosen.size(1));
  const Row<A> bias = load_vector<A>(args.bias);
  for (int64_t t = 0; t < args.scores.size(0); ++t) {
    Row<A> s = load_row<A>(args.logits, t), biased(experts), weights(k);
    for (size_t i = 0; i < experts; ++i) {
      s[i] = A(1) / (A(1) + std::exp(-s[i]));
      biased[i] = s[i] + bias[i];
    }
    const std::vector<int32_t> chosen = largest(biased, k);
    A sum = A(1e-20);
    for (size_t j = 0; j < k; ++j) sum += weights[j] = s[static_cast<size_t>(chosen[j])];
    const A factor = static_cast<A>(args.scaling) / (args.renormalize ? sum : A(1));
    for (A& w : weights) w *= factor;
    std::copy(chosen.begin(), chosen.end(), args.chosen.as<int32_t>() + t * static_cast<int64_t>(k));
    store_row(args.weights, t, weights);
    store_row(args.scores, t, s);
  }
  if (!args.fractions) return;
  for (int64_t sequence = 0; sequence < args.fractions.size(0); ++sequence) balance_of_sequence<A>(args, sequence);
}

template <class A>
void backward(const RouterBackward& args) {
  const int64_t tokens = args.scores.size(0), k = args.chosen.size(1);
  const size_t experts = static_cast<size_t>(args.scores.size(1));
  for (int64_t t = 0; t < tokens; ++t) {
    const Row<A> s = load_row<A>(args.scores, t), d_weights = load_row<A>(args.d_weights, t);
    const int32_t* chosen = args.chosen.as<int32_t>() + t * k;
    Row<A> ds(experts);
    A sum = A(1e-20), projection = 0;
    for (int64_t j = 0; j < k; ++j) {
      sum += s[static_cast<size_t>(chosen[j])];
      projection += d_weights[static_cast<size_t>(j)] * s[static_cast<size_t>(chosen[j])];
    }
    const A factor = static_cast<A>(args.scaling) / (args.renormalize ? sum : A(1));
    const A shift = args.renormalize ? projection / sum : A(0);
    for (int64_t j = 0; j < k; ++j) {
      ds[static_cast<size_t>(chosen[j])] = factor * (d_weights[static_cast<size_t>(j)] - shift);
    }
    if (args.fractions && tokens > 0) {
      const int64_t num_tokens = tokens / args.fractions.size(0);
      const Row<A> fraction = load_row<A>(args.fractions, t / num_tokens);
      const A total = std::accumulate(s.begin(), s.end(), A(0)), mean = dot(fraction, s) / total;
      const A scale = static_cast<A>(args.balance_scale) / (static_cast<A>(num_tokens) * total);
      for (size_t i = 0; i < experts; ++i) ds[i] += scale * (fraction[i] - mean);
    }
    for (size_t i = 0; i < experts; ++i) ds[i] *= s[i] * (A(1) - s[i]);
    store_row(args.d_logits, t, ds);
  }
}

// Of s / sum: log(sum) - (sum of s log s) / sum. Scores that are all zero have none.
template <class A>
double entropy_of(const Row<A>& scores) {
  double sum = 0, weighted = 0;
  for (const A score : scores) {
    const auto s = static_cast<double>(score);
    sum += s;
    if (s > 0) weighted += s * std::log(s);
  }
  return sum > 0 ? std::log(sum) - weighted / sum : 0.0;
}

}  // namespace

void router_forward(OpContext&, const RouterForward& args) {
  visit_acc(args.scores.dtype, [&]<class A>(A) { forward<A>(args); });
}
void router_backward(OpContext&, const RouterBackward& args) {
  visit_acc(args.scores.dtype, [&]<class A>(A) { backward<A>(args); });
}
void router_observe(OpContext&, const RouterObserve& args) {
  const int32_t* chosen = args.chosen.as<int32_t>();
  int32_t* const counts = args.counts.as<int32_t>();
  for (int64_t n = 0; n < args.chosen.num_elements(); ++n) ++counts[chosen[n]];
  if (!args.entropy) return;
  visit_acc(args.scores.dtype, [&]<class A>(A) {
    double sum = 0;
    for (int64_t t = 0; t < args.scores.size(0); ++t) sum += entropy_of(load_row<A>(args.scores, t));
    *args.entropy.as<double>() += sum;
  });
}

}  // namespace lamina::ops::ref
