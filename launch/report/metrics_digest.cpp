#include "launch/report/metrics_digest.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "core/base/error.h"
#include "trainer/record/run_folder.h"

namespace lamina::report {
namespace {

using nlohmann::json;

constexpr double no_number = std::numeric_limits<double>::quiet_NaN();
constexpr std::array always_there = {"loss", "grad_norm", "lr", "tokens", "tokens_per_second"};

// "2026-11-30T13:43:41Z" in seconds since 1970; NaN for what is none.
double parse_utc(const json& row) {
  const auto found = row.find("time");
  if (found == row.end() || !found->is_string()) return no_number;
  int year = 0, hour = 0, minute = 0, second = 0;
  unsigned month = 0, day = 0;
  if (std::sscanf(found->get_ref<const std::string&>().c_str(), "%d-%u-%uT%d:%d:%dZ", &year, &month, &day, &hour,
                  &minute, &second) != 6)
    return no_number;
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month), std::chrono::day(day)};
  if (!date.ok()) return no_number;
  const auto days = static_cast<double>(std::chrono::sys_days(date).time_since_epoch().count());
  return 86400 * days + 3600.0 * hour + 60.0 * minute + second;
}

// Rows have whole seconds, rounded down, in which many short steps may lie. A step ends no earlier than its own time after the one before
// it, as far as that is within its second.
class Clock {
 public:
  explicit Clock(std::vector<Start>& starts) : starts_(starts) {}

  // When the row's step was done.
  double add(const json& row, int64_t step, int64_t tokens, double step_seconds) {
    const double written = parse_utc(row);
    const int64_t number = row.contains("start") && row["start"].is_number_integer() ? row["start"].get<int64_t>() : 1;
    if (starts_.empty() || number != starts_.back().number) {
      if (std::isfinite(now_)) running_ += now_ - starts_.back().time;
      now_ = written;
      if (std::isfinite(written)) running_ += step_seconds;
      starts_.push_back({number, step, tokens, now_, std::isfinite(written) ? running_ : no_number});
      return now_;
    }
    if (!std::isfinite(written)) return no_number;
    if (!std::isfinite(now_)) {  // the first of this start that says when
      now_ = starts_.back().time = written;
      starts_.back().running = running_;
      return now_;
    }
    // A clock that was set back stands still until it has caught up.
    now_ = std::max(now_, std::clamp(now_ + step_seconds, written, written + 0.999));
    return now_;
  }

 private:
  std::vector<Start>& starts_;
  double now_ = no_number, running_ = 0;
};

void check_row(const json& row, int64_t last_step, const study::RunData& run) {
  const auto path = [&] { return RunFolder{run.folder}.metrics().string(); };
  const int64_t step = row["step"].get<int64_t>();
  if (step <= last_step)
    throw Error("{}: found step {} after step {}, expected steps that rise from 1", path(), step, last_step);
  for (const char* key : always_there) {
    const auto found = row.find(key);
    if (found == row.end()) throw Error("{}: step {}: found no '{}', expected a number", path(), step, key);
    const bool may_be_null = std::string_view(key) != "tokens";  // null: not a number, or infinite
    if (!found->is_number() && !(may_be_null && found->is_null()))
      throw Error("{}: step {}: found '{}' for '{}', expected a number", path(), step, found->dump(), key);
  }
}

json number_or_null(double value) {
  return std::isfinite(value) ? json(value) : json();
}

}  // namespace

json to_json(const std::vector<Start>& starts, double time_zero) {
  json out = json::array();
  for (const Start& start : starts)
    out.push_back({{"start", start.number},
                   {"step", start.step},
                   {"tokens", start.tokens},
                   {"time", number_or_null(start.time - time_zero)},
                   {"running", number_or_null(start.running)}});
  return out;
}

double MetricsDigest::first_time() const {
  for (const Start& start : starts)
    if (std::isfinite(start.time)) return start.time;
  return 0;
}

const Thinner* MetricsDigest::find(const std::string& key) const {
  const auto found = series.find(key);
  return found == series.end() ? nullptr : &found->second;
}

MetricsDigest digest_metrics(const study::RunData& run, const std::vector<std::string>& keys, bool with_tasks,
                             size_t max_points) {
  MetricsDigest digest;
  Clock clock(digest.starts);
  int64_t last_step = 0, last_tokens = 0;
  const study::RowReader next = run.metrics();
  while (const std::optional<json> row = next()) {
    check_row(*row, last_step, run);
    Point point{(*row)["step"].get<int64_t>(), (*row)["tokens"].get<int64_t>(), no_number, no_number};
    const auto step_tokens = static_cast<double>(point.tokens - last_tokens);
    const double rate = value_at(*row, "tokens_per_second").value_or(no_number);
    const double seconds = rate > 0 ? step_tokens / rate : 0;
    point.time = clock.add(*row, point.step, point.tokens, seconds);
    const int64_t stage = row->value("stage", int64_t{1});
    if (stage > (digest.stages.empty() ? 1 : digest.stages.back().stage))
      digest.stages.push_back({stage, point.step, point.tokens});
    digest.seconds_in_steps += seconds;
    if (seconds > 0) digest.tokens_in_steps += step_tokens;
    if (const double mfu = value_at(*row, "mfu").value_or(no_number); seconds > 0 && std::isfinite(mfu)) {
      digest.mfu_seconds += mfu * seconds;
      digest.mfu_time += seconds;
    }
    const auto take = [&](const std::string& key) {
      const std::optional<double> value = value_at(*row, key);
      if (!value) return;
      point.value = *value;
      digest.series.try_emplace(key, max_points).first->second.add(point);
    };
    for (const std::string& key : keys) take(key);
    if (const auto tasks = row->find("tasks"); with_tasks && tasks != row->end() && tasks->is_object())
      for (const auto& [name, values] : tasks->items()) take("tasks." + name + ".acc");
    if (const auto peaks = row->find("peak_bytes"); peaks != row->end() && peaks->is_object())
      digest.peak_bytes = *peaks;
    last_step = point.step;
    last_tokens = point.tokens;
  }
  return digest;
}

}  // namespace lamina::report
