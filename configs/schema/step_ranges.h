// Ranges of steps as users write them: "1230-1240, 1300".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lamina {

struct StepRange {
  int64_t first = 0, last = 0;  // counted from 1, both included
  bool operator==(const StepRange&) const = default;
};

// In order, joined where they meet or overlap. Empty for an empty text. Throws Error "found ..., expected ..." (without a place) for
// anything but numbers from 1 and ranges that rise.
std::vector<StepRange> parse_step_ranges(const std::string& text);
std::vector<StepRange> join(std::vector<StepRange> ranges);
std::string to_text(const std::vector<StepRange>& ranges);  // "1230-1240, 1300"

}  // namespace lamina
