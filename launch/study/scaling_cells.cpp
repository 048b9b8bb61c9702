#include "launch/study/scaling_cells.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/base/error.h"

namespace lamina::study {
namespace {

constexpr double budget_width = 1.10;    // computes of one isoFLOP budget, largest over smallest
constexpr double distinct_ratio = 1.01;  // from which on two computes, or two sizes, count as two

std::string place(const FitPoint& point) {
  return fmt::format("variant '{}'{}, seed {}", point.variant, point.size.empty() ? "" : ", size " + point.size,
                     point.seed);
}

void check_point(const FitPoint& point) {
  const auto check = [&](const char* name, double value) {
    if (!std::isfinite(value) || value <= 0)
      throw Error("{}: found {} {}, expected a positive number", place(point), name, value);
  };
  check("loss", point.loss);
  check("compute", point.compute);
}

// Cells of one variant by compute, cut where a cell lies more than the width above the budget's first.
std::vector<std::vector<size_t>> find_curves(const Cells& cells, size_t variant) {
  std::vector<std::vector<size_t>> budgets;
  for (size_t i = 0; i < cells.cells.size(); ++i) {
    const Cell& cell = cells.cells[i];
    if (cell.variant != variant || cell.parameters <= 0 || cell.tokens <= 0) continue;
    if (budgets.empty() || cell.compute > cells.cells[budgets.back().front()].compute * budget_width)
      budgets.emplace_back();
    budgets.back().push_back(i);
  }
  std::erase_if(budgets, [&](std::vector<size_t>& budget) {
    std::vector<double> sizes;
    for (const size_t i : budget) sizes.push_back(cells.cells[i].parameters);
    std::stable_sort(budget.begin(), budget.end(),
                     [&](size_t a, size_t b) { return cells.cells[a].parameters < cells.cells[b].parameters; });
    return num_distinct(sizes) < 3;
  });
  return budgets;
}

}  // namespace

size_t num_distinct(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  size_t count = 0;
  double last = 0;
  for (const double value : values)
    if (count == 0 || value > last * distinct_ratio) {
      ++count;
      last = value;
    }
  return count;
}

std::vector<double> Cells::means() const {
  std::vector<double> means;
  for (const Cell& cell : cells) means.push_back(cell.mean);
  return means;
}

Cells make_cells(const std::vector<FitPoint>& points) {
  if (points.empty())
    throw Error("found no points to fit, expected finished runs of at least {} sizes", least_computes);
  Cells result;
  std::map<std::tuple<double, double, double, std::string, std::string>, Cell> by_key;
  for (const FitPoint& point : points) {
    check_point(point);
    auto variant = std::find(result.variants.begin(), result.variants.end(), point.variant);
    if (variant == result.variants.end()) variant = result.variants.insert(variant, point.variant);
    Cell& cell = by_key[{point.compute, point.parameters, point.tokens, point.size, point.variant}];
    cell.variant = static_cast<size_t>(variant - result.variants.begin());
    cell.size = point.size;
    cell.parameters = point.parameters;
    cell.tokens = point.tokens;
    cell.compute = point.compute;
    for (const auto& [seed, loss] : cell.losses)
      if (seed == point.seed)
        throw Error("{}: found twice with {} tokens, expected each seed once", place(point), point.tokens);
    cell.losses.emplace_back(point.seed, std::log(point.loss));
  }
  for (auto& [key, cell] : by_key) {
    std::sort(cell.losses.begin(), cell.losses.end());
    for (const auto& [seed, loss] : cell.losses) cell.mean += loss / static_cast<double>(cell.losses.size());
    result.cells.push_back(std::move(cell));
  }
  for (size_t v = 0; v < result.variants.size(); ++v) {
    std::vector<double> computes;
    for (const Cell& cell : result.cells)
      if (cell.variant == v) computes.push_back(cell.compute);
    const auto curves = find_curves(result, v);
    if (curves.empty() && num_distinct(computes) < least_computes)
      throw Error("variant '{}': found {} different value(s) of compute, expected at least {} to fit a law",
                  result.variants[v], num_distinct(computes), least_computes);
    result.curves.insert(result.curves.end(), curves.begin(), curves.end());
  }
  return result;
}

}  // namespace lamina::study
