// Which token comes next, from the logits of all.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace lamina::inference {

struct Sampling {
  double temperature = 0.8;  // 0: the likeliest token each time, the first of equals
  int64_t top_k = 0;         // of the k likeliest; 0: of all
  double top_p = 0.95;       // of the fewest that have at least this probability together; 1: of all
};

// Drawn from softmax(logits / temperature), first cut by top_k, then by top_p, with `uniform` in [0, 1).
int64_t draw_token(std::span<const float> logits, const Sampling& sampling, double uniform);

// ln of softmax(logits), of the model as it is: no temperature, nothing cut.
class LogProbabilities {
 public:
  explicit LogProbabilities(std::span<const float> logits);
  double of(int64_t token) const { return static_cast<double>(logits_[static_cast<size_t>(token)]) - normaliser_; }
  // The likeliest first, of equals the first.
  std::vector<std::pair<int32_t, double>> likeliest(int64_t count) const;

 private:
  std::span<const float> logits_;
  double normaliser_;
};

}  // namespace lamina::inference
