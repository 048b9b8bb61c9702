// Curves of a page: what is plotted against steps, thinned while it is read, so that neither memory nor page grows with the run.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace lamina::report {

struct Point {
  int64_t step = 0, tokens = 0;
  double time = std::numeric_limits<double>::quiet_NaN();  // seconds since 1970 (UTC); NaN: the row doesn't say
  double value =
      std::numeric_limits<double>::quiet_NaN();  // NaN: the row has the key without a number (a gap in the curve)
};

// Of one quantity, by step.
struct Series {
  std::vector<Point> points;
  std::vector<double> mean;  // of each point's stretch of rows; NaN: none of them has a number
  size_t num_rows = 0;       // before it was thinned
  size_t stretch = 1;        // rows that two points stand for; 1: every row is there
};

// Takes a point per row, in order, and keeps at most `max_points` (at least 4) and the two ends: of equally long stretches of rows the
// smallest and the largest value. A peak of a single step is therefore still seen, and each point is one of the rows'. When the stretches
// are as many as may be, every two become one: their length is a power of two.
class Thinner {
 public:
  explicit Thinner(size_t max_points);
  void add(const Point& point);
  Series series() const;
  std::optional<double> last_number() const { return last_number_; }
  size_t num_held() const;  // points in memory

 private:
  struct Stretch {
    Point low, high;
    double sum = 0;
    size_t num_rows = 0, num_numbers = 0;
    void merge(const Stretch& next);
  };
  void halve();

  size_t max_points_, length_ = 1, num_rows_ = 0;
  Point first_, last_;
  std::optional<double> last_number_;
  std::vector<Stretch> stretches_;
};

// step, tokens, value, rows, stretch; of a thinned one mean (six digits); and time, in seconds since `time_zero`, where a row has it.
nlohmann::json to_json(const Series& series, double time_zero = 0);

// As many digits as a picture needs; null for what is not finite.
nlohmann::json six_digits(double value);

// The number at `key` ("loss", or "comm_bytes.data" of an object in the row; names may have dots of their own); absent without the key,
// NaN for what is no number.
std::optional<double> value_at(const nlohmann::json& row, const std::string& key);

}  // namespace lamina::report
