#include "launch/study/scaling_law.h"

#include <algorithm>
#include <cmath>

#include "configs/schema/nearest.h"
#include "core/base/error.h"
#include "launch/study/scaling_cells.h"

namespace lamina::study {
namespace {

constexpr double least_condition = 1e-6;   // of the Jacobian: below, the three parameters cannot be told apart
constexpr double within_rounding = 1.001;  // of compute, at the ends of the measured range

std::string choose_baseline(const std::vector<std::string>& variants, const std::string& wanted) {
  const std::string name = wanted.empty() ? "standard" : wanted;
  if (std::find(variants.begin(), variants.end(), name) != variants.end()) return name;
  if (wanted.empty()) return variants.front();
  if (const auto near = nearest_name(wanted, variants))
    throw Error("--baseline: unknown variant '{}', did you mean {}?", wanted, *near);
  std::string names;
  for (const std::string& variant : variants) names += (names.empty() ? "" : ", ") + variant;
  throw Error("--baseline: unknown variant '{}', expected one of {}", wanted, names);
}

// Why the data do not tell an irreducible term, or "".
std::string irreducible_problem(const LawFit& law, const IrreducibleFit& solved, size_t num_computes_over,
                                double lowest) {
  if (std::isnan(solved.e)) return "the solver found no minimum";
  if (solved.e < 1e-6 * lowest) return "E = 0 fits best";
  if (solved.condition < least_condition)
    return fmt::format("E, A and alpha cannot be told apart (E = {:.4g} fits best)", solved.e);
  if (law.e->interval) {
    if (law.e->interval->low <= 0)
      return fmt::format("E's interval reaches zero: {:.4g} [0, {:.4g}]", solved.e, law.e->interval->high);
    return "";
  }
  // Without seeds the residuals are what tells how well E is known.
  const double reach = student_quantile(0.975, static_cast<double>(num_computes_over)) * solved.e_error;
  if (reach >= solved.e) return fmt::format("E = {:.4g} is known to +-{:.2g} only, by the residuals", solved.e, reach);
  return "";
}

void settle_laws(VariantFit& variant, const IrreducibleFit& solved, const Cells& cells, size_t index,
                 const std::vector<IsoFlopFit>& isoflop) {
  size_t num_law_points = 0;
  double lowest = 0;
  for (const Cell& cell : cells.cells)
    if (cell.variant == index) {
      ++num_law_points;
      lowest = lowest == 0 ? std::exp(cell.mean) : std::min(lowest, std::exp(cell.mean));
    }
  if (variant.over_isoflop_minima) {
    num_law_points = 0;
    for (const IsoFlopFit& fit : isoflop)
      if (fit.variant == variant.variant)
        for (const IsoFlopCurve& curve : fit.curves) num_law_points += curve.problem.empty() ? 1 : 0;
  }
  if (variant.power_problem.empty() && variant.power->alpha.value <= 0)
    variant.power_problem =
        fmt::format("the loss does not fall with compute (alpha {:.3g})", variant.power->alpha.value);
  if (!variant.power_problem.empty() && variant.irreducible_problem.empty())
    variant.irreducible_problem = variant.power_problem;
  if (variant.irreducible_problem.empty())
    variant.irreducible_problem = irreducible_problem(*variant.irreducible, solved, num_law_points - 3, lowest);
  if (!variant.power_problem.empty()) variant.power.reset();
  if (!variant.irreducible_problem.empty()) variant.irreducible.reset();
}

const VariantFit& variant_of(const StudyFit& fit, const std::string& name) {
  return *std::find_if(fit.variants.begin(), fit.variants.end(),
                       [&](const VariantFit& v) { return v.variant == name; });
}

// "standard is read at 1.3 times its largest measured compute"
void note_outside(std::string& note, const VariantFit& variant, double compute) {
  const char* end = compute > variant.max_compute ? "largest" : "smallest";
  const double edge = compute > variant.max_compute ? variant.max_compute : variant.min_compute;
  if (compute <= variant.max_compute * within_rounding && compute >= variant.min_compute / within_rounding) return;
  note += fmt::format("{}{} is read at {:.3g} times its {} measured compute", note.empty() ? "" : ", ", variant.variant,
                      compute / edge, end);
}

void settle_gains(StudyFit& fit) {
  std::erase_if(fit.gains, [&](const GainFit& gain) {
    const VariantFit &variant = variant_of(fit, gain.variant), &baseline = variant_of(fit, gain.baseline);
    return gain.form == "power" ? !variant.power || !baseline.power : !variant.irreducible || !baseline.irreducible;
  });
  for (GainFit& gain : fit.gains) {
    note_outside(gain.note, variant_of(fit, gain.variant), gain.compute);
    if (!gain.infinite) note_outside(gain.note, variant_of(fit, gain.baseline), gain.gain.value * gain.compute);
  }
}

}  // namespace

StudyFit fit_study(std::vector<FitPoint> points, const FitOptions& options) {
  const Cells cells = make_cells(points);
  FitOptions settled = options;
  settled.baseline = choose_baseline(cells.variants, options.baseline);
  if (!std::isfinite(options.at) || options.at < 0)
    throw Error("--at: found {} FLOP, expected a positive number", options.at);
  if (options.num_resamples < 0) throw Error("--resamples: found {}, expected 0 or more", options.num_resamples);
  if (options.at == 0) settled.at = cells.cells.back().compute;

  Evaluation evaluation = evaluate(cells, cells.means(), settled);
  add_intervals(cells, evaluation);
  StudyFit& fit = evaluation.fit;
  fit.points = std::move(points);
  for (size_t v = 0; v < fit.variants.size(); ++v)
    settle_laws(fit.variants[v], evaluation.irreducible[v], cells, v, fit.isoflop);
  settle_gains(fit);
  for (IsoFlopFit& isoflop : fit.isoflop)
    if (isoflop.parameters_exponent && std::isnan(isoflop.parameters_exponent->value)) {
      isoflop.parameters_exponent.reset();
      isoflop.tokens_exponent.reset();
    }
  return std::move(fit);
}

}  // namespace lamina::study
