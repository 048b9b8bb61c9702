#include "configs/schema/step_ranges.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "core/base/error.h"

namespace lamina {
namespace {

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::optional<int64_t> number(std::string_view text) {
  text = trimmed(text);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || value < 1) return std::nullopt;
  return value;
}

}  // namespace

std::vector<StepRange> parse_step_ranges(const std::string& text) {
  std::vector<StepRange> ranges;
  if (trimmed(text).empty()) return ranges;
  std::string_view rest = text;
  for (bool more = true; more;) {
    const size_t comma = rest.find(',');
    more = comma != std::string_view::npos;
    const std::string_view part = trimmed(rest.substr(0, comma));
    if (more) rest.remove_prefix(comma + 1);
    const size_t dash = part.find('-');
    const std::optional<int64_t> first = number(part.substr(0, dash));
    const std::optional<int64_t> last = dash == std::string_view::npos ? first : number(part.substr(dash + 1));
    if (!first || !last || *last < *first)
      throw Error("found `{}`, expected steps from 1 and rising ranges of them: 1230-1240, 1300", part);
    ranges.push_back({*first, *last});
  }
  return join(std::move(ranges));
}

std::vector<StepRange> join(std::vector<StepRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const StepRange& a, const StepRange& b) { return a.first < b.first; });
  std::vector<StepRange> joined;
  for (const StepRange& range : ranges) {
    if (joined.empty() || range.first - 1 > joined.back().last) {
      joined.push_back(range);
    } else {
      joined.back().last = std::max(joined.back().last, range.last);
    }
  }
  return joined;
}

std::string to_text(const std::vector<StepRange>& ranges) {
  std::string text;
  for (const StepRange& range : ranges) {
    if (!text.empty()) text += ", ";
    text += std::to_string(range.first);
    if (range.last > range.first) text += "-" + std::to_string(range.last);
  }
  return text;
}

}  // namespace lamina
