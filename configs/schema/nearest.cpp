#include "configs/schema/nearest.h"

#include <algorithm>
#include <vector>

namespace lamina {
namespace {

// Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> before(b.size() + 1), previous(b.size() + 1), current(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) current[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, previous);
    std::swap(previous, current);
    current[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        current[j] = std::min(current[j], before[j - 2] + 1);
    }
  }
  return current[b.size()];
}

}  // namespace

std::optional<std::string> nearest_name(const std::string& found, std::span<const std::string> names) {
  std::optional<std::string> best;
  size_t best_distance = std::max<size_t>(1, found.size() / 3) + 1;
  for (const std::string& name : names) {
    const size_t distance = edit_distance(found, name);
    if (distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  if (best || found.size() < 3) return best;
  // An abbreviation, or a part of a longer name: "batch_size" for "global_batch_size".
  for (const std::string& name : names)
    if (name.find(found) != std::string::npos) return name;
  return std::nullopt;
}

}  // namespace lamina
