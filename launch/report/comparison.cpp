#include "launch/report/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <span>
#include <utility>

#include "configs/schema/decode.h"
#include "trainer/record/run_folder.h"

namespace lamina::report {
namespace {

using nlohmann::json;
using study::RowReader;
using study::RunData;

constexpr std::array metric_quantities = {"loss", "grad_norm"};
constexpr std::array layer_quantities = {"hidden_rms",  "depth_weights", "output_rms", "max_logit",
                                         "expert_load", "grad_rms",      "grad_norm",  "weight_norm"};

bool differ(double a, double b, double tolerance) {
  if (a == b) return false;
  return std::fabs(a - b) > tolerance * std::max(std::fabs(a), std::fabs(b));
}

// Of numbers, and of arrays element by element; a quantity that only one row has is not compared.
std::optional<Difference> difference(const json& a, const json& b, const char* key, double tolerance) {
  const auto left = a.find(key), right = b.find(key);
  if (left == a.end() || right == b.end()) return std::nullopt;
  if (left->is_number() && right->is_number()) {
    const double first = left->get<double>(), second = right->get<double>();
    if (!differ(first, second, tolerance)) return std::nullopt;
    return Difference{0, "", key, first, second};
  }
  if (!left->is_array() || !right->is_array()) return std::nullopt;
  for (size_t i = 0; i < std::min(left->size(), right->size()); ++i) {
    if (!(*left)[i].is_number() || !(*right)[i].is_number()) continue;
    const double first = (*left)[i].get<double>(), second = (*right)[i].get<double>();
    if (differ(first, second, tolerance)) return Difference{0, "", fmt::format("{}[{}]", key, i), first, second};
  }
  return std::nullopt;
}

// The rows of one step after the other, by depth.
class Steps {
 public:
  explicit Steps(RowReader next) : next_(std::move(next)), ahead_(next_()) {}
  using Place = std::pair<int64_t, std::string>;  // layer, sublayer
  bool read() {
    rows_.clear();
    if (!ahead_) return false;
    step_ = step_of(*ahead_);
    while (ahead_ && step_of(*ahead_) == step_) {
      Place place{ahead_->value("layer", int64_t{0}), ahead_->value("sublayer", "")};
      rows_.insert_or_assign(std::move(place), std::move(*ahead_));
      ahead_ = next_();
    }
    return true;
  }
  int64_t step() const { return step_; }
  const std::map<Place, json>& rows() const { return rows_; }

 private:
  static int64_t step_of(const json& row) { return row["step"].get<int64_t>(); }
  RowReader next_;
  std::optional<json> ahead_;
  int64_t step_ = 0;
  std::map<Place, json> rows_;
};

// The first of the keys that differs in some place of the step.
std::optional<Difference> difference_at(const Steps& a, const Steps& b, std::span<const char* const> keys,
                                        double tolerance) {
  for (const auto& [place, row] : a.rows()) {
    const auto other = b.rows().find(place);
    if (other == b.rows().end()) continue;
    for (const char* key : keys) {
      std::optional<Difference> found = difference(row, other->second, key, tolerance);
      if (!found) continue;
      found->step = a.step();
      const auto& [layer, sublayer] = place;
      if (!sublayer.empty())
        found->place = sublayer == "output" ? "output" : fmt::format("layer {} {}", layer, sublayer);
      return found;
    }
  }
  return std::nullopt;
}

bool share_a_place(const Steps& a, const Steps& b) {
  return std::any_of(a.rows().begin(), a.rows().end(), [&](const auto& row) { return b.rows().contains(row.first); });
}

Comparison compare(RowReader a_rows, RowReader b_rows, std::span<const char* const> keys) {
  Comparison out;
  Steps a(std::move(a_rows)), b(std::move(b_rows));
  bool has_a = a.read(), has_b = b.read();
  while (has_a && has_b) {
    if (a.step() < b.step()) {
      has_a = a.read();
    } else if (b.step() < a.step()) {
      has_b = b.read();
    } else {
      if (share_a_place(a, b)) {
        if (out.num_common++ == 0) out.first_step = a.step();
        out.last_step = a.step();
      }
      if (!out.exact) out.exact = difference_at(a, b, keys, 0);
      if (out.exact && !out.beyond_rounding) out.beyond_rounding = difference_at(a, b, keys, rounding);
      has_a = a.read();
      has_b = b.read();
    }
  }
  return out;
}

std::string sentence(const std::string& what, const std::optional<Difference>& found) {
  if (!found) return fmt::format("{}: no difference.", what);
  return fmt::format("{}: step {}, {}{}{}: {} against {} (relative difference {:.2g}).", what, found->step,
                     found->place, found->place.empty() ? "" : ", ", found->quantity, found->first, found->second,
                     found->relative());
}

}  // namespace

double Difference::relative() const {
  return std::fabs(first - second) / std::max(std::fabs(first), std::fabs(second));
}

Comparison compare_metrics(const RunData& a, const RunData& b) {
  return compare(a.metrics(), b.metrics(), metric_quantities);
}

Comparison compare_layers(const RunData& a, const RunData& b) {
  return compare(a.layers(), b.layers(), layer_quantities);
}

std::vector<std::string> describe_differences(const RunData& a, const RunData& b) {
  const Comparison metrics = compare_metrics(a, b);
  if (metrics.num_common == 0) return {"The runs have no step in common: nothing to compare."};
  std::vector<std::string> lines{
      fmt::format("{} steps in common, {} to {}.", metrics.num_common, metrics.first_step, metrics.last_step)};
  const std::string data = study::first_data_difference(study::read_identity(a.folder), study::read_identity(b.folder));
  if (!data.empty()) lines.push_back(fmt::format("Trained or measured on other tokens: {}.", data));
  lines.push_back(sentence("Loss and gradient norm, bit for bit", metrics.exact));
  if (metrics.exact) lines.push_back(sentence("Loss and gradient norm, beyond rounding", metrics.beyond_rounding));
  const Comparison layers = compare_layers(a, b);
  if (layers.num_common == 0) {
    lines.emplace_back("Sublayers: no step of layers.jsonl in common.");
    return lines;
  }
  lines.push_back(sentence("Sublayers, bit for bit", layers.exact));
  if (layers.exact) lines.push_back(sentence("Sublayers, beyond rounding", layers.beyond_rounding));
  return lines;
}

json comparison_document(std::span<const RunData> runs) {
  std::vector<std::map<std::string, std::string>> configs;
  std::set<std::string> keys;
  for (const RunData& run : runs) {
    configs.push_back(flatten_config(to_yaml(run.config)));
    for (const auto& [key, value] : configs.back()) keys.insert(key);
  }
  json differing = json::array();
  for (const std::string& key : keys) {
    json values = json::array();
    for (const auto& config : configs) values.push_back(config.contains(key) ? json(config.at(key)) : json());
    if (std::any_of(values.begin(), values.end(), [&](const json& value) { return value != values.front(); }))
      differing.push_back({{"key", key}, {"values", values}});
  }
  json against = json::array();
  for (size_t i = 1; i < runs.size(); ++i)
    against.push_back({{"run", i}, {"sentences", describe_differences(runs.front(), runs[i])}});
  return {{"configuration", differing}, {"against", against}, {"rounding", rounding}};
}

}  // namespace lamina::report
