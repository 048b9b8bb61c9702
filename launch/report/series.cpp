#include "launch/report/series.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/base/error.h"

namespace lamina::report {
namespace {

using nlohmann::json;

const json* find(const json& row, const std::string& key) {
  if (const auto whole = row.find(key); whole != row.end()) return &*whole;
  for (size_t dot = key.find('.'); dot != std::string::npos; dot = key.find('.', dot + 1)) {
    const auto outer = row.find(key.substr(0, dot));
    if (outer == row.end() || !outer->is_object()) continue;
    if (const json* found = find(*outer, key.substr(dot + 1))) return found;
  }
  return nullptr;
}

json milliseconds(double time) {
  return std::isfinite(time) ? json(std::round(time * 1000) / 1000) : json();
}

}  // namespace

void Thinner::Stretch::merge(const Stretch& next) {
  if (std::isnan(low.value) || next.low.value < low.value) low = next.low;
  if (std::isnan(high.value) || next.high.value > high.value) high = next.high;
  sum += next.sum;
  num_rows += next.num_rows;
  num_numbers += next.num_numbers;
}

Thinner::Thinner(size_t max_points) : max_points_(max_points) {
  LAMINA_CHECK(max_points >= 4, "{} points cannot hold two stretches", max_points);
}

void Thinner::halve() {
  for (size_t i = 0; i < stretches_.size(); i += 2) {
    Stretch both = stretches_[i];
    if (i + 1 < stretches_.size()) both.merge(stretches_[i + 1]);
    stretches_[i / 2] = both;
  }
  stretches_.resize((stretches_.size() + 1) / 2);
  length_ *= 2;
}

void Thinner::add(const Point& point) {
  if (num_rows_++ == 0) first_ = point;
  last_ = point;
  const bool is_number = !std::isnan(point.value);
  if (is_number) last_number_ = point.value;
  const Stretch own{point, point, is_number ? point.value : 0, 1, is_number ? size_t{1} : 0};
  if (!stretches_.empty() && stretches_.back().num_rows < length_) {
    stretches_.back().merge(own);
    return;
  }
  // A stretch of one row is one point, a longer one two.
  while (stretches_.size() == (length_ == 1 ? max_points_ : max_points_ / 2)) halve();
  if (!stretches_.empty() && stretches_.back().num_rows < length_)
    stretches_.back().merge(own);
  else
    stretches_.push_back(own);
}

Series Thinner::series() const {
  Series out;
  out.num_rows = num_rows_;
  out.stretch = length_;
  const auto put = [&](const Point& point, const Stretch& stretch) {
    if (!out.points.empty() && out.points.back().step >= point.step) return;
    out.points.push_back(point);
    out.mean.push_back(stretch.num_numbers > 0 ? stretch.sum / static_cast<double>(stretch.num_numbers)
                                               : std::numeric_limits<double>::quiet_NaN());
  };
  for (const Stretch& stretch : stretches_) {
    const bool low_first = stretch.low.step <= stretch.high.step;
    if (out.points.empty()) put(first_, stretch);
    put(low_first ? stretch.low : stretch.high, stretch);
    put(low_first ? stretch.high : stretch.low, stretch);
  }
  if (!stretches_.empty()) put(last_, stretches_.back());
  return out;
}

size_t Thinner::num_held() const {
  return 2 * stretches_.capacity() + 2;
}

json to_json(const Series& series, double time_zero) {
  json step = json::array(), tokens = json::array(), time = json::array(), value = json::array();
  bool has_time = false;
  for (const Point& point : series.points) {
    step.push_back(point.step);
    tokens.push_back(point.tokens);
    time.push_back(milliseconds(point.time - time_zero));
    value.push_back(std::isfinite(point.value) ? json(point.value) : json());
    has_time = has_time || std::isfinite(point.time);
  }
  json out = {
      {"step", step}, {"tokens", tokens}, {"value", value}, {"rows", series.num_rows}, {"stretch", series.stretch}};
  if (has_time) out["time"] = std::move(time);
  if (series.stretch > 1) {
    json mean = json::array();
    for (const double of_stretch : series.mean) mean.push_back(six_digits(of_stretch));
    out["mean"] = std::move(mean);
  }
  return out;
}

json six_digits(double value) {
  return std::isfinite(value) ? json(std::strtod(fmt::format("{:.6g}", value).c_str(), nullptr)) : json();
}

std::optional<double> value_at(const json& row, const std::string& key) {
  const json* value = find(row, key);
  if (!value) return std::nullopt;
  return value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace lamina::report
