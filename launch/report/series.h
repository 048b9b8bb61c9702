// Curves of a page: what is plotted against steps, thinned so that a page of a long run stays small.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace lamina::report {

// Points of one quantity, by step. NaN: the row has the key without a number (a gap in the curve).
struct Series {
  std::vector<int64_t> step, tokens;
  std::vector<double> value;
  size_t num_rows = 0;  // before it was thinned
  bool is_thinned() const { return step.size() < num_rows; }
};

// The values of `key` ("loss", or "comm_bytes.data" of an object in the row) in the rows that have it.
Series read_series(const std::vector<nlohmann::json>& rows, const std::string& key);

// At most max_points (at least 4): the first and the last, and of each of equally long stretches between them the smallest and
// the largest. A peak of a single step is therefore still seen, and each point is one of the rows'.
Series thin(const Series& series, size_t max_points);

nlohmann::json to_json(const Series& series);

// `count` of the indices 0 .. total - 1 (all when there are no more), evenly, the first and the last among them.
std::vector<size_t> spread(size_t total, size_t count);

}  // namespace lamina::report
