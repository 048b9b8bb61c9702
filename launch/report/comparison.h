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

// Of two runs' rows at the steps that both have. `tolerance` 0: other bits; else a relative difference above it.
// metrics.jsonl: loss, then grad_norm. layers.jsonl: by step and depth; per sublayer what it took and gave, then gradients.
std::optional<Difference> first_metric_difference(const study::RunData& a, const study::RunData& b, double tolerance);
std::optional<Difference> first_layer_difference(const study::RunData& a, const study::RunData& b, double tolerance);

// In words, one sentence each.
std::vector<std::string> describe_differences(const study::RunData& a, const study::RunData& b);

// configuration [{key, values: [per run]}] of the keys that are not the same in all, against [{run, first: sentences}] of every
// other run against the first.
nlohmann::json comparison_document(std::span<const study::RunData> runs);

}  // namespace lamina::report
