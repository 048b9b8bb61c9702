// Between the points and the fit (scaling_law.h): the points sorted into cells, the fit as a function of the cells' means, and the
// intervals, which are that function's answers to resampled means.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "launch/study/scaling_law.h"
#include "launch/study/scaling_solver.h"

namespace lamina::study {

constexpr size_t least_computes = 3, least_irreducible = 4;  // for a law of either form

// How many values there are that are more than 1 % above the one before.
size_t num_distinct(std::vector<double> values);

struct Cell {
  size_t variant = 0;
  std::string size;
  double parameters = 0, tokens = 0, compute = 0;
  std::vector<std::pair<uint64_t, double>> losses;  // seed and log L, by seed
  double mean = 0;                                  // of log L
};

struct Cells {
  std::vector<std::string> variants;  // in the order of their first point
  std::vector<Cell> cells;            // by compute, then parameters: independent of the points' order within a variant
  // [curve] -> indices of cells, by parameters. Budgets of one variant: three sizes at least within 10 % of compute.
  std::vector<std::vector<size_t>> curves;
  std::vector<double> means() const;
};

// Error: a value that is not positive and finite, the same seed twice, too few values of compute (fit_study's).
Cells make_cells(const std::vector<FitPoint>& points);

// Values without intervals, every part that the data could have: where they do not give it, its values are not numbers.
struct Evaluation {
  StudyFit fit;
  std::vector<IrreducibleFit> irreducible;  // [variant]
};
// `around`: of the means themselves, when `means` are a resample near them.
Evaluation evaluate(const Cells& cells, const std::vector<double>& means, const FitOptions& options,
                    const Evaluation* around = nullptr);

enum class Scale { linear, logarithmic, not_negative };  // in which an estimate's deviations are taken
struct Slot {
  Estimate* estimate;
  Scale scale;
};
std::vector<Slot> estimates(StudyFit& fit);  // all of them, in an order that hangs on the cells alone

void add_intervals(const Cells& cells, Evaluation& evaluation);

}  // namespace lamina::study
