#include "launch/report/comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "configs/schema/decode.h"
#include "trainer/run_folder.h"

namespace lamina::report {
namespace {

using nlohmann::json;
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

std::map<int64_t, const json*> by_step(const std::vector<json>& rows) {
  std::map<int64_t, const json*> found;
  for (const json& row : rows) found[row["step"].get<int64_t>()] = &row;
  return found;
}

using Place = std::tuple<int64_t, int64_t, std::string>;  // step, layer, sublayer: in this order also by depth
std::map<Place, const json*> by_place(const std::vector<json>& rows) {
  std::map<Place, const json*> found;
  for (const json& row : rows)
    found[{row["step"].get<int64_t>(), row.value("layer", int64_t{0}), row.value("sublayer", "")}] = &row;
  return found;
}

template <class Key>
std::vector<Key> common(const std::map<Key, const json*>& a, const std::map<Key, const json*>& b) {
  std::vector<Key> keys;
  for (const auto& [key, row] : a)
    if (b.contains(key)) keys.push_back(key);
  return keys;
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

std::optional<Difference> first_metric_difference(const RunData& a, const RunData& b, double tolerance) {
  const auto left = by_step(a.metrics), right = by_step(b.metrics);
  for (int64_t step : common(left, right))
    for (const char* key : metric_quantities)
      if (auto found = difference(*left.at(step), *right.at(step), key, tolerance)) {
        found->step = step;
        return found;
      }
  return std::nullopt;
}

std::optional<Difference> first_layer_difference(const RunData& a, const RunData& b, double tolerance) {
  const auto left = by_place(a.layers), right = by_place(b.layers);
  for (const Place& place : common(left, right))
    for (const char* key : layer_quantities)
      if (auto found = difference(*left.at(place), *right.at(place), key, tolerance)) {
        const auto& [step, layer, sublayer] = place;
        found->step = step;
        found->place = sublayer == "output" ? sublayer : fmt::format("layer {} {}", layer, sublayer);
        return found;
      }
  return std::nullopt;
}

std::vector<std::string> describe_differences(const RunData& a, const RunData& b) {
  const std::vector<int64_t> steps = common(by_step(a.metrics), by_step(b.metrics));
  if (steps.empty()) return {"The runs have no step in common: nothing to compare."};
  std::vector<std::string> lines{
      fmt::format("{} steps in common, {} to {}.", steps.size(), steps.front(), steps.back())};
  const auto exact = first_metric_difference(a, b, 0);
  lines.push_back(sentence("Loss and gradient norm, bit for bit", exact));
  if (exact)
    lines.push_back(sentence("Loss and gradient norm, beyond rounding", first_metric_difference(a, b, rounding)));
  const auto places = common(by_place(a.layers), by_place(b.layers));
  if (places.empty()) {
    lines.emplace_back("Sublayers: no step of layers.jsonl in common.");
    return lines;
  }
  const auto exact_layer = first_layer_difference(a, b, 0);
  lines.push_back(sentence("Sublayers, bit for bit", exact_layer));
  if (exact_layer) lines.push_back(sentence("Sublayers, beyond rounding", first_layer_difference(a, b, rounding)));
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
