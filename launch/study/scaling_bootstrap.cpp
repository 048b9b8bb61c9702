#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "core/base/error.h"
#include "core/base/rng.h"
#include "launch/study/scaling_cells.h"

namespace lamina::study {
namespace {

constexpr double tail = 0.025;  // on either side
constexpr double normal_quantile = 1.95996398454005423552;
constexpr double most_failed = 0.01;     // of the resamples: a part of the fit that fails in more has no interval
constexpr double influence_step = 1e-4;  // of a mean of log L, for derivatives

// Cells whose seeds are drawn together: those of one size, where all have the same seeds; else each cell for itself.
struct Group {
  std::vector<size_t> cells;
  size_t num_seeds = 0;
};

bool same_seeds(const Cell& a, const Cell& b) {
  return std::equal(a.losses.begin(), a.losses.end(), b.losses.begin(), b.losses.end(),
                    [](const auto& x, const auto& y) { return x.first == y.first; });
}

std::vector<Group> find_groups(const Cells& cells, bool& paired) {
  // Without names for the sizes the number of parameters stands for one.
  std::map<std::tuple<double, std::string, double>, std::vector<size_t>> by_size;
  for (size_t i = 0; i < cells.cells.size(); ++i) {
    const Cell& cell = cells.cells[i];
    const double unnamed = cell.tokens > 0 ? cell.parameters : cell.compute;
    by_size[{cell.tokens, cell.size, cell.size.empty() ? unnamed : 0}].push_back(i);
  }
  std::vector<Group> groups;
  paired = cells.variants.size() > 1;
  for (const auto& [key, members] : by_size) {
    bool match = true, all_once = members.size() == cells.variants.size();
    std::vector<bool> seen(cells.variants.size());
    for (const size_t i : members) {
      const Cell& cell = cells.cells[i];
      match = match && same_seeds(cells.cells[members.front()], cell) && !seen[cell.variant];
      seen[cell.variant] = true;
    }
    paired = paired && match && all_once;
    if (match) {
      groups.push_back({members, cells.cells[members.front()].losses.size()});
    } else {
      for (const size_t i : members) groups.push_back({{i}, cells.cells[i].losses.size()});
    }
  }
  // A group's draws must not hang on the order in which variants were first met.
  std::sort(groups.begin(), groups.end(), [&](const Group& a, const Group& b) {
    const auto key = [&](const Group& g) {
      std::vector<std::string> names;
      for (const size_t i : g.cells) names.push_back(cells.variants[cells.cells[i].variant]);
      std::sort(names.begin(), names.end());
      const Cell& cell = cells.cells[g.cells.front()];
      return std::tuple(cell.tokens, cell.size, cell.compute, names);
    };
    return key(a) < key(b);
  });
  return groups;
}

double to_scale(double value, Scale scale) {
  return scale == Scale::logarithmic ? std::log(value) : value;
}

double from_scale(double value, Scale scale) {
  if (scale == Scale::logarithmic) return std::exp(value);
  return scale == Scale::not_negative ? std::max(value, 0.0) : value;
}

std::vector<double> values_of(Evaluation evaluation) {
  std::vector<double> values;
  for (const Slot& slot : estimates(evaluation.fit)) values.push_back(to_scale(slot.estimate->value, slot.scale));
  return values;
}

std::vector<double> resampled_means(const Cells& cells, const std::vector<Group>& groups, const CounterRng& rng,
                                    uint64_t resample) {
  std::vector<double> means = cells.means();
  size_t most_seeds = 0;
  for (const Group& group : groups) most_seeds = std::max(most_seeds, group.num_seeds);
  for (size_t g = 0; g < groups.size(); ++g) {
    const auto num_seeds = static_cast<double>(groups[g].num_seeds);
    if (groups[g].num_seeds < 2) continue;
    const double widened = std::sqrt(num_seeds / (num_seeds - 1));
    for (size_t draw = 0; draw < groups[g].num_seeds; ++draw) {
      const uint64_t index = (resample * groups.size() + g) * most_seeds + draw;
      const auto seed = static_cast<size_t>(rng.below(index, groups[g].num_seeds));
      for (const size_t i : groups[g].cells)
        means[i] += widened * (cells.cells[i].losses[seed].second - cells.cells[i].mean) / num_seeds;
    }
  }
  return means;
}

// Derivatives of every value by every cell's mean, [value][cell].
std::vector<std::vector<double>> influences(const Cells& cells, const Evaluation& around, size_t num_values) {
  std::vector<std::vector<double>> result(num_values, std::vector<double>(cells.cells.size()));
  for (size_t i = 0; i < cells.cells.size(); ++i) {
    std::vector<double> means = cells.means();
    means[i] += influence_step;
    const std::vector<double> above = values_of(evaluate(cells, means, around.fit.options, &around));
    means[i] -= 2 * influence_step;
    const std::vector<double> below = values_of(evaluate(cells, means, around.fit.options, &around));
    for (size_t k = 0; k < num_values; ++k) result[k][i] = (above[k] - below[k]) / (2 * influence_step);
  }
  return result;
}

// Welch and Satterthwaite: the degrees of freedom of a sum of independent groups' variances, each known from its seeds. Zero:
// the value hangs on a cell with one seed.
double degrees_of_freedom(const Cells& cells, const std::vector<Group>& groups, const std::vector<double>& influence) {
  double total = 0, squares = 0, largest = 0;
  for (const double w : influence) largest = std::max(largest, std::abs(w));
  for (const Group& group : groups) {
    const auto num_seeds = static_cast<double>(group.num_seeds);
    double variance = 0;
    for (size_t seed = 0; seed < group.num_seeds; ++seed) {
      double deviation = 0;
      for (const size_t i : group.cells)
        deviation += influence[i] * (cells.cells[i].losses[seed].second - cells.cells[i].mean);
      variance += deviation * deviation;
    }
    if (group.num_seeds < 2) {
      for (const size_t i : group.cells)
        if (!(std::abs(influence[i]) <= 1e-9 * largest)) return 0;
      continue;
    }
    variance /= (num_seeds - 1) * num_seeds;
    total += variance;
    squares += variance * variance / (num_seeds - 1);
  }
  if (std::isnan(total)) return 0;
  return squares > 0 ? total * total / squares : std::numeric_limits<double>::max();
}

// Linear between neighbours; `values` sorted. Two infinite neighbours are one value.
double quantile(const std::vector<double>& values, double p) {
  const double position = p * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(position);
  const double rest = position - static_cast<double>(below);
  if (rest == 0 || values[below] == values[below + 1]) return values[below];
  return values[below] + rest * (values[below + 1] - values[below]);
}

std::optional<Interval> interval_of(std::vector<double> resamples, double value, double degrees, Scale scale) {
  const size_t before = resamples.size();
  std::erase_if(resamples, [](double v) { return std::isnan(v); });
  const auto failed = static_cast<double>(before - resamples.size());
  if (resamples.empty() || !std::isfinite(value) || degrees < 1 || failed > most_failed * static_cast<double>(before))
    return std::nullopt;
  std::sort(resamples.begin(), resamples.end());
  const double stretch = degrees > 1e6 ? 1 : student_quantile(1 - tail, degrees) / normal_quantile;
  const auto end = [&](double p) { return from_scale(value + stretch * (quantile(resamples, p) - value), scale); };
  return Interval{end(tail), end(1 - tail)};
}

std::string single_seeds(const Cells& cells) {
  std::string names;
  size_t count = 0;
  for (const Cell& cell : cells.cells) {
    if (cell.losses.size() > 1) continue;
    if (++count <= 3)
      names += fmt::format("{}{}{}", count > 1 ? ", " : "", cells.variants[cell.variant],
                           cell.size.empty() ? fmt::format(" at {:.3g} FLOP", cell.compute) : " at size " + cell.size);
  }
  if (count == 0) return "";
  if (count == cells.cells.size()) return "no cell has a second seed";
  return fmt::format("{}{} has one seed: no interval for what hangs on it", names,
                     count > 3 ? fmt::format(" and {} more", count - 3) : "");
}

}  // namespace

void add_intervals(const Cells& cells, Evaluation& evaluation) {
  StudyFit& fit = evaluation.fit;
  const std::vector<Group> groups = find_groups(cells, fit.paired);
  fit.interval_problem = fit.options.num_resamples == 0 ? "no resamples were asked for" : single_seeds(cells);
  const bool none = std::all_of(groups.begin(), groups.end(), [](const Group& g) { return g.num_seeds < 2; });
  if (fit.options.num_resamples == 0 || none) return;

  const std::vector<double> values = values_of(evaluation);
  const std::vector<std::vector<double>> influence = influences(cells, evaluation, values.size());
  const CounterRng rng(fit.options.seed, "scaling_law.bootstrap");
  std::vector<std::vector<double>> resamples(values.size());
  for (uint64_t r = 0; r < static_cast<uint64_t>(fit.options.num_resamples); ++r) {
    const std::vector<double> means = resampled_means(cells, groups, rng, r);
    const std::vector<double> resample = values_of(evaluate(cells, means, fit.options, &evaluation));
    LAMINA_CHECK(resample.size() == values.size(), "{} values, {} of a resample", values.size(), resample.size());
    for (size_t k = 0; k < values.size(); ++k) resamples[k].push_back(resample[k]);
  }
  const std::vector<Slot> slots = estimates(fit);
  for (size_t k = 0; k < slots.size(); ++k)
    slots[k].estimate->interval = interval_of(std::move(resamples[k]), values[k],
                                              degrees_of_freedom(cells, groups, influence[k]), slots[k].scale);
}

}  // namespace lamina::study
