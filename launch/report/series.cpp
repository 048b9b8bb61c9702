#include "launch/report/series.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/error.h"

namespace lamina::report {
namespace {

using nlohmann::json;

// Names may have dots of their own.
const json* find(const json& row, const std::string& key) {
  if (const auto whole = row.find(key); whole != row.end()) return &*whole;
  for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', dot + 1)) {
    const auto outer = row.find(key.substr(0, dot));
    if (outer == row.end() || !outer->is_object()) continue;
    if (const json* found = find(*outer, key.substr(dot + 1))) return found;
  }
  return nullptr;
}

}  // namespace

Series read_series(const std::vector<json>& rows, const std::string& key) {
  Series series;
  for (const json& row : rows) {
    const json* value = find(row, key);
    if (!value) continue;
    series.step.push_back(row["step"].get<int64_t>());
    const auto tokens = row.find("tokens");
    series.tokens.push_back(tokens != row.end() && tokens->is_number() ? tokens->get<int64_t>() : 0);
    series.value.push_back(value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN());
  }
  series.num_rows = series.step.size();
  return series;
}

Series thin(const Series& series, size_t max_points) {
  LAMINA_CHECK(max_points >= 4, "{} points cannot hold the ends and one stretch", max_points);
  const size_t count = series.step.size();
  if (count <= max_points) return series;
  const size_t num_stretches = (max_points - 2) / 2;
  std::vector<size_t> kept{0};
  for (size_t stretch = 0; stretch < num_stretches; ++stretch) {
    const size_t begin = 1 + (count - 2) * stretch / num_stretches;
    const size_t end = 1 + (count - 2) * (stretch + 1) / num_stretches;
    size_t low = begin, high = begin;
    for (size_t i = begin + 1; i < end; ++i) {
      const double value = series.value[i];
      if (std::isnan(series.value[low]) || value < series.value[low]) low = i;
      if (std::isnan(series.value[high]) || value > series.value[high]) high = i;
    }
    kept.push_back(std::min(low, high));
    if (low != high) kept.push_back(std::max(low, high));
  }
  kept.push_back(count - 1);
  Series thinned;
  thinned.num_rows = series.num_rows;
  for (size_t i : kept) {
    thinned.step.push_back(series.step[i]);
    thinned.tokens.push_back(series.tokens[i]);
    thinned.value.push_back(series.value[i]);
  }
  return thinned;
}

json to_json(const Series& series) {
  return {{"step", series.step}, {"tokens", series.tokens}, {"value", series.value}, {"rows", series.num_rows}};
}

std::vector<size_t> spread(size_t total, size_t count) {
  std::vector<size_t> indices;
  count = std::min(count, total);
  for (size_t i = 0; i < count; ++i) indices.push_back(count == 1 ? total - 1 : i * (total - 1) / (count - 1));
  return indices;
}

}  // namespace lamina::report
