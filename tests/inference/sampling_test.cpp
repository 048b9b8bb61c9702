#include "inference/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "core/base/rng.h"

namespace lamina::inference {
namespace {

const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};

// The shares of draws with uniform numbers spread evenly: the probabilities themselves.
std::map<int64_t, double> shares(std::span<const float> of, const Sampling& sampling, int count = 10000) {
  std::map<int64_t, double> out;
  for (int i = 0; i < count; ++i) out[draw_token(of, sampling, (i + 0.5) / count)] += 1.0 / count;
  return out;
}

void expect_shares(const std::map<int64_t, double>& found, const std::map<int64_t, double>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  for (const auto& [token, share] : expected) EXPECT_NEAR(found.at(token), share, 2e-4) << token;
}

TEST(DrawToken, FollowsTheSoftmax) {
  expect_shares(shares(logits, {1.0, 0, 1.0}), {{0, 0.1}, {1, 0.4}, {2, 0.2}, {3, 0.3}});
  const double sum = std::sqrt(0.1) + std::sqrt(0.4) + std::sqrt(0.2) + std::sqrt(0.3);
  expect_shares(
      shares(logits, {2.0, 0, 1.0}),
      {{0, std::sqrt(0.1) / sum}, {1, std::sqrt(0.4) / sum}, {2, std::sqrt(0.2) / sum}, {3, std::sqrt(0.3) / sum}});
}

TEST(DrawToken, CutsByCountAndByProbability) {
  expect_shares(shares(logits, {1.0, 2, 1.0}), {{1, 4.0 / 7}, {3, 3.0 / 7}});
  expect_shares(shares(logits, {1.0, 0, 0.75}), {{1, 4.0 / 9}, {3, 3.0 / 9}, {2, 2.0 / 9}});  // 0.7 is too little
  expect_shares(shares(logits, {1.0, 3, 0.5}), {{1, 4.0 / 7}, {3, 3.0 / 7}});  // of those three 0.4 / 0.9 is too little
  expect_shares(shares(logits, {1.0, 0, 0.0}), {{1, 1.0}});
  expect_shares(shares(logits, {1.0, 100, 1.0}), {{0, 0.1}, {1, 0.4}, {2, 0.2}, {3, 0.3}});
}

TEST(DrawToken, WithoutTemperatureTheFirstOfTheLikeliest) {
  const std::vector<float> equal = {1, 3, 3, 2};
  for (const double uniform : {0.0, 0.5, 0.999}) EXPECT_EQ(draw_token(equal, {0.0, 0, 1.0}, uniform), 1);
}

// A vocabulary larger than what is sorted at once, against one that is sorted whole.
TEST(DrawToken, OfALargeVocabulary) {
  const CounterRng rng(1, "vocabulary");
  std::vector<float> many(1000);
  for (size_t i = 0; i < many.size(); ++i)
    many[i] = static_cast<float>(0.5 * std::floor(3 * rng.normal(i)));  // many equal ones
  std::vector<int64_t> order(many.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return many[static_cast<size_t>(a)] > many[static_cast<size_t>(b)]; });
  for (const int64_t k : {1, 63, 64, 65, 300, 999}) {
    std::set<int64_t> found;
    for (const auto& [token, share] : shares(many, {50.0, k, 1.0}, 1500)) found.insert(token);
    EXPECT_EQ(found, std::set<int64_t>(order.begin(), order.begin() + k)) << k;
  }
}

TEST(LogProbabilities, OfTheWholeVocabulary) {
  const LogProbabilities probabilities(logits);
  EXPECT_NEAR(probabilities.of(0), std::log(0.1), 1e-6);
  const auto likeliest = probabilities.likeliest(2);
  ASSERT_EQ(likeliest.size(), 2u);
  EXPECT_EQ(likeliest[0].first, 1);
  EXPECT_NEAR(likeliest[1].second, std::log(0.3), 1e-6);
  EXPECT_EQ(probabilities.likeliest(9).size(), 4u);
  EXPECT_TRUE(probabilities.likeliest(0).empty());
}

}  // namespace
}  // namespace lamina::inference
