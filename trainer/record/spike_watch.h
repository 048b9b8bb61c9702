// Detects a step that is out of line with those before it. It is compared with the median of the last few steps, in units of the noise.
// The noise is estimated from the differences between successive steps, which a trend and a few wild steps hardly affect:
// 1.4826 median |x[i] - x[i-1]| / sqrt(2) is the standard deviation of normal numbers (as in J. Rice, Bandwidth choice for nonparametric
// regression, 1984, with the median in place of squares).
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>

namespace lamina {

class SpikeWatch {
 public:
  static constexpr int64_t window = 128;    // steps whose noise is measured, at most
  static constexpr int64_t recent = 16;     // steps whose median is expected
  static constexpr int64_t min_steps = 32;  // before that nothing finite is a spike
  static constexpr double floor =
      0.01;  // the least deviation, as a share of the median: a flat stretch makes nothing a spike

  // More than `threshold` deviations above what is expected are a spike; 0: only numbers that aren't finite.
  explicit SpikeWatch(double threshold) : threshold_(threshold) {}

  // Why this step is a spike, for a line in the log; nothing when it isn't.
  std::optional<std::string> judge(double loss, double grad_norm) const;
  // Finite ones that the next steps are compared with.
  void accept(double loss, double grad_norm);

  // The steps kept, to the bit. restore() throws Error for a text that to_text() doesn't write.
  std::string to_text() const;
  void restore(const std::string& text);

 private:
  struct Seen {
    double loss, grad_norm;
  };
  std::optional<std::string> compare(const char* name, double value, double Seen::*field) const;

  double threshold_;
  std::deque<Seen> seen_;
};

}  // namespace lamina
