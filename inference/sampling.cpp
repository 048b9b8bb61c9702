#include "inference/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lamina::inference {
namespace {

// Tokens in falling order of their logits, sorted as far as somebody asks: few of a large vocabulary are likely.
class Ranking {
 public:
  explicit Ranking(std::span<const float> logits) : logits_(logits), order_(logits.size()) {
    std::iota(order_.begin(), order_.end(), int64_t{0});
  }
  int64_t operator[](size_t rank) {
    if (rank >= sorted_) sort_up_to(rank + 1);
    return order_[rank];
  }

 private:
  void sort_up_to(size_t count) {
    const size_t end = std::min(order_.size(), std::max<size_t>({64, count, 4 * sorted_}));
    const auto at = [&](size_t rank) { return order_.begin() + static_cast<std::ptrdiff_t>(rank); };
    std::partial_sort(at(sorted_), at(end), order_.end(), [&](int64_t a, int64_t b) {
      const float x = logits_[static_cast<size_t>(a)], y = logits_[static_cast<size_t>(b)];
      return x != y ? x > y : a < b;
    });
    sorted_ = end;
  }

  std::span<const float> logits_;
  std::vector<int64_t> order_;
  size_t sorted_ = 0;
};

}  // namespace

int64_t draw_token(std::span<const float> logits, const Sampling& sampling, double uniform) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (sampling.temperature <= 0) return best - logits.begin();
  const auto weight_of = [&](int64_t token) {
    return std::exp((static_cast<double>(logits[static_cast<size_t>(token)]) - static_cast<double>(*best)) /
                    sampling.temperature);
  };
  Ranking ranking(logits);
  size_t count = logits.size();
  if (sampling.top_k > 0) count = std::min(count, static_cast<size_t>(sampling.top_k));
  double total = 0;
  if (count < logits.size()) {
    for (size_t rank = 0; rank < count; ++rank) total += weight_of(ranking[rank]);
  } else {
    for (size_t token = 0; token < logits.size(); ++token) total += weight_of(static_cast<int64_t>(token));
  }
  // The likeliest that have top_p of the total, and of those the one at which `uniform` of their sum is passed.
  double kept = total;
  if (sampling.top_p < 1) {
    kept = 0;
    size_t used = 0;
    while (used < count && (used == 0 || kept < sampling.top_p * total)) kept += weight_of(ranking[used++]);
    count = used;
  }
  double left = uniform * kept;
  for (size_t rank = 0; rank + 1 < count; ++rank) {
    left -= weight_of(ranking[rank]);
    if (left < 0) return ranking[rank];
  }
  return ranking[count - 1];
}

LogProbabilities::LogProbabilities(std::span<const float> logits) : logits_(logits) {
  const auto best = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - best);
  normaliser_ = best + std::log(sum);
}

std::vector<std::pair<int32_t, double>> LogProbabilities::likeliest(int64_t count) const {
  std::vector<std::pair<int32_t, double>> out;
  Ranking ranking(logits_);
  for (size_t rank = 0; rank < std::min(static_cast<size_t>(count), logits_.size()); ++rank)
    out.emplace_back(static_cast<int32_t>(ranking[rank]), of(ranking[rank]));
  return out;
}

}  // namespace lamina::inference
