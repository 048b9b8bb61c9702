// Where runs differ: in their configurations, and in what they logged.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "launch/study/run_data.h"

namespace lamina::report {

// The relative difference that sums in another order may leave: runs whose numbers agree to it computed the same mathematics.
constexpr double rounding = 1e-6;

struct Difference {
  int64_t step = 0;
  std::string place;     // "", or the sublayer: "layer 3 mlp", "output"
  std::string quantity;  // "loss", "depth_weights[2]"
  double first = 0, second = 0;
  double relative() const;  // |a - b| / max(|a|, |b|)
};

// Of two runs' rows at the steps that both have, in one pass over both. Sublayers: by step and depth; per sublayer what it took and gave,
// then gradients.
struct Comparison {
  int64_t num_common = 0, first_step = 0, last_step = 0;  // steps (of layers.jsonl: with a sublayer) that both have
  std::optional<Difference> exact, beyond_rounding;  // the first: other bits; a relative difference above `rounding`
};
Comparison compare_metrics(const study::RunData& a, const study::RunData& b);  // loss, then grad_norm
Comparison compare_layers(const study::RunData& a, const study::RunData& b);

// In words, one sentence each.
std::vector<std::string> describe_differences(const study::RunData& a, const study::RunData& b);

// configuration [{key, values: [per run]}] of the keys that are not the same in all, against [{run, first: sentences}] of every
// other run against the first.
nlohmann::json comparison_document(std::span<const study::RunData> runs);

}  // namespace lamina::report
