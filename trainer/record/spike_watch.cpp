#include "trainer/record/spike_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <sstream>
#include <vector>

#include "core/base/error.h"

namespace lamina {
namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

}  // namespace

std::optional<std::string> SpikeWatch::compare(const char* name, double value, double Seen::*field) const {
  std::vector<double> last, differences;
  for (size_t i = 0; i < seen_.size(); ++i) {
    if (i + recent >= seen_.size()) last.push_back(seen_[i].*field);
    if (i > 0) differences.push_back(std::abs(seen_[i].*field - seen_[i - 1].*field));
  }
  const double expected = median(std::move(last));
  const double noise = 1.4826 * median(std::move(differences)) / std::sqrt(2.0);
  const double deviations = (value - expected) / std::max(noise, floor * std::abs(expected));
  if (!(deviations > threshold_)) return std::nullopt;
  return fmt::format("{} {:.5g} is {:.1f} deviations above {:.5g}, the median of {} steps", name, value, deviations,
                     expected, recent);
}

std::optional<std::string> SpikeWatch::judge(double loss, double grad_norm) const {
  if (!std::isfinite(loss) || !std::isfinite(grad_norm))
    return fmt::format("loss {}, gradient norm {}, expected finite numbers", loss, grad_norm);
  if (threshold_ == 0 || static_cast<int64_t>(seen_.size()) < min_steps) return std::nullopt;
  if (auto reason = compare("loss", loss, &Seen::loss)) return reason;
  return compare("gradient norm", grad_norm, &Seen::grad_norm);
}

void SpikeWatch::accept(double loss, double grad_norm) {
  seen_.push_back({loss, grad_norm});
  if (static_cast<int64_t>(seen_.size()) > window) seen_.pop_front();
}

std::string SpikeWatch::to_text() const {
  std::string text;
  for (const Seen& seen : seen_)
    text += fmt::format("{} {}\n", seen.loss, seen.grad_norm);  // reads back to the same bits
  return text;
}

void SpikeWatch::restore(const std::string& text) {
  seen_.clear();
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    char* end = nullptr;
    const double loss = std::strtod(line.c_str(), &end);
    const char* rest = end;
    const double grad_norm = std::strtod(rest, &end);
    if (rest == line.c_str() || end == rest || *end != '\0' || !std::isfinite(loss) || !std::isfinite(grad_norm))
      throw Error("spike_window: found `{}`, expected a loss and a gradient norm", line);
    accept(loss, grad_norm);
  }
}

}  // namespace lamina
