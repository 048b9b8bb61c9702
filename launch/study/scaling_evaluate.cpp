// The fit as a function of the cells' means: what a resample changes is nothing but these.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/error.h"
#include "launch/study/scaling_cells.h"

namespace lamina::study {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr int num_curve_points = 40;

double log_compute(double flop) {
  return std::log(flop / pflops_day);
}

struct LawPoint {
  double compute;
  WeightedPoint point;  // log C, log L
};

// ---- isoFLOP curves ----

// `around`: the curve of the means themselves, when this is a resample. Whether there is an optimum is settled there; a minimum
// that slips outside the sizes then still counts.
void find_minimum(IsoFlopCurve& curve, std::span<const WeightedPoint> losses, std::span<const WeightedPoint> tokens,
                  const IsoFlopCurve* around) {
  if (around) curve.problem = around->problem;
  const std::vector<double> c = polynomial_fit(losses, 2);
  curve.c0 = c[0];
  curve.c1 = c[1];
  curve.c2 = c[2];
  const double x = -curve.c1 / (2 * curve.c2);
  if (!(curve.c2 > 0)) {
    curve.problem = "its losses have no minimum over the sizes";
  } else if (!around && (x < losses.front().x || x > losses.back().x)) {
    curve.problem = fmt::format("its minimum lies outside the sizes, at {:.3g} parameters", curve.centre * std::exp(x));
  }
  if (!curve.problem.empty()) {
    curve.parameters_opt.value = curve.tokens_opt.value = curve.loss_opt.value = nan;
    return;
  }
  // Tokens of the budget at this size: a line through its cells is exact for C = 6 N D, a parabola nearly so with attention.
  const std::vector<double> d = polynomial_fit(tokens, 2);
  curve.parameters_opt.value = curve.centre * std::exp(x);
  curve.tokens_opt.value = std::exp(d[0] + d[1] * x + d[2] * x * x);
  curve.loss_opt.value = curve.c0 + curve.c1 * x + curve.c2 * x * x;
}

IsoFlopCurve fit_curve(const Cells& cells, const std::vector<size_t>& members, const std::vector<double>& means,
                       const IsoFlopCurve* around) {
  IsoFlopCurve curve;
  const auto count = static_cast<double>(members.size());
  double log_parameters = 0, log_flop = 0;
  for (const size_t i : members) {
    const Cell& cell = cells.cells[i];
    curve.parameters.push_back(cell.parameters);
    curve.tokens.push_back(cell.tokens);
    curve.losses.push_back(std::exp(means[i]));
    log_parameters += std::log(cell.parameters) / count;
    log_flop += std::log(cell.compute) / count;
  }
  curve.centre = std::exp(log_parameters);
  curve.compute = std::exp(log_flop);
  std::vector<WeightedPoint> losses, tokens;
  for (size_t k = 0; k < members.size(); ++k) {
    const double x = std::log(curve.parameters[k] / curve.centre);
    const auto weight = static_cast<double>(cells.cells[members[k]].losses.size());
    losses.push_back({x, curve.losses[k], weight});
    tokens.push_back({x, std::log(curve.tokens[k]), weight});
  }
  find_minimum(curve, losses, tokens, around);
  return curve;
}

Estimate exponent(const std::vector<IsoFlopCurve>& curves, Estimate IsoFlopCurve::*optimum) {
  std::vector<WeightedPoint> points;
  for (const IsoFlopCurve& curve : curves)
    if (curve.problem.empty()) points.push_back({log_compute(curve.compute), std::log((curve.*optimum).value)});
  if (points.size() < 2) return {nan, {}};
  return {polynomial_fit(points, 1)[1], {}};
}

std::vector<IsoFlopFit> fit_isoflop(const Cells& cells, const std::vector<double>& means, const StudyFit* around) {
  std::vector<IsoFlopFit> fits;
  for (const std::vector<size_t>& members : cells.curves) {
    const std::string& variant = cells.variants[cells.cells[members.front()].variant];
    if (fits.empty() || fits.back().variant != variant) fits.push_back({variant, {}, {}, {}});
    IsoFlopFit& fit = fits.back();
    const IsoFlopCurve* curve = around ? &around->isoflop[fits.size() - 1].curves[fit.curves.size()] : nullptr;
    fit.curves.push_back(fit_curve(cells, members, means, curve));
  }
  for (IsoFlopFit& fit : fits) {
    if (fit.curves.size() < 2) continue;
    fit.parameters_exponent = exponent(fit.curves, &IsoFlopCurve::parameters_opt);
    fit.tokens_exponent = exponent(fit.curves, &IsoFlopCurve::tokens_opt);
  }
  return fits;
}

// ---- Laws ----

// All cells of the variant; of one whose every cell is on an isoFLOP curve, the curves' minima: sizes beside the best one
// are no points of a law over compute.
std::vector<LawPoint> law_points(const Cells& cells, size_t variant, const std::vector<double>& means,
                                 const std::vector<IsoFlopFit>& isoflop, bool over_minima) {
  std::vector<LawPoint> points;
  if (over_minima) {
    for (const IsoFlopFit& fit : isoflop)
      if (fit.variant == cells.variants[variant])
        for (const IsoFlopCurve& curve : fit.curves)
          if (curve.problem.empty())
            points.push_back({curve.compute, {log_compute(curve.compute), std::log(curve.loss_opt.value), 1}});
    return points;
  }
  for (size_t i = 0; i < cells.cells.size(); ++i)
    if (const Cell& cell = cells.cells[i]; cell.variant == variant)
      points.push_back({cell.compute, {log_compute(cell.compute), means[i], static_cast<double>(cell.losses.size())}});
  return points;
}

double root_mean_square(const LawFit& law, const std::vector<WeightedPoint>& points) {
  double sum = 0;
  for (const WeightedPoint& point : points) {
    const double rest = std::log(law.loss(std::exp(point.x) * pflops_day)) - point.y;
    sum += rest * rest / static_cast<double>(points.size());
  }
  return std::sqrt(sum);
}

LawFit no_law(bool irreducible) {
  LawFit law;
  law.a.value = law.alpha.value = nan;
  if (irreducible) law.e = Estimate{nan, {}};
  return law;
}

LawFit power_law(const std::vector<WeightedPoint>& points) {
  const std::vector<double> c = polynomial_fit(points, 1);
  LawFit law;
  law.a.value = std::exp(c[0]);
  law.alpha.value = -c[1];
  return law;
}

LawFit irreducible_law(const IrreducibleFit& fit) {
  LawFit law;
  law.a.value = std::exp(fit.log_a);
  law.alpha.value = fit.alpha;
  law.e = Estimate{fit.e, {}};
  return law;
}

void fit_laws(VariantFit& variant, IrreducibleFit& irreducible, const std::vector<LawPoint>& law_points,
              const IrreducibleFit* nearby) {
  std::vector<WeightedPoint> points;
  std::vector<double> computes;
  for (const LawPoint& point : law_points) {
    points.push_back(point.point);
    computes.push_back(point.compute);
  }
  const size_t count = num_distinct(computes);
  variant.power = count >= least_computes ? power_law(points) : no_law(false);
  const bool possible = count >= least_irreducible && !(nearby && std::isnan(nearby->e));
  irreducible = {nan, nan, nan, 0, 0};
  if (possible) irreducible = irreducible_fit(points, nearby);
  variant.irreducible = possible ? irreducible_law(irreducible) : no_law(true);
  for (LawFit* law : {&*variant.power, &*variant.irreducible}) law->rms = root_mean_square(*law, points);
  if (count < least_computes)
    variant.power_problem = fmt::format("{} value(s) of compute{}, at least {} are needed", count,
                                        variant.over_isoflop_minima ? " with a minimum" : "", least_computes);
  if (count < least_irreducible)
    variant.irreducible_problem =
        fmt::format("{} value(s) of compute, at least {} are needed", count, least_irreducible);
}

VariantFit describe(const Cells& cells, size_t index) {
  VariantFit variant;
  variant.variant = cells.variants[index];
  size_t on_curves = 0;
  for (const auto& curve : cells.curves) on_curves += cells.cells[curve.front()].variant == index ? curve.size() : 0;
  for (const Cell& cell : cells.cells) {
    if (cell.variant != index) continue;
    if (variant.num_cells++ == 0) {
      variant.min_compute = cell.compute;
      variant.min_seeds = cell.losses.size();
    }
    variant.num_points += cell.losses.size();
    variant.max_compute = cell.compute;
    variant.min_seeds = std::min(variant.min_seeds, cell.losses.size());
    variant.max_seeds = std::max(variant.max_seeds, cell.losses.size());
  }
  variant.over_isoflop_minima = on_curves == variant.num_cells;
  return variant;
}

// ---- Gains ----

GainFit gain_of(const VariantFit& variant, const VariantFit& baseline, bool irreducible, double at) {
  GainFit gain{variant.variant, baseline.variant, irreducible ? "irreducible" : "power", at, false, {}, ""};
  const LawFit& of_variant = irreducible ? *variant.irreducible : *variant.power;
  const LawFit& of_baseline = irreducible ? *baseline.irreducible : *baseline.power;
  const double loss = of_variant.loss(at);
  if (std::isnan(loss) || std::isnan(of_baseline.alpha.value)) {
    gain.gain.value = nan;
    return gain;
  }
  const std::optional<double> needed = of_baseline.compute(loss);
  gain.gain.value = needed ? *needed / at : infinity;
  gain.infinite = std::isinf(gain.gain.value);
  return gain;
}

void evaluate_curves(StudyFit& fit, const Cells& cells) {
  const double first = std::log(cells.cells.front().compute), last = std::log(cells.cells.back().compute);
  for (VariantFit& variant : fit.variants)
    for (LawFit* law : {&*variant.power, &*variant.irreducible})
      for (int i = 0; i < num_curve_points; ++i) {
        const double compute = std::exp(first + (last - first) * i / (num_curve_points - 1));
        law->curve.push_back({compute, {law->loss(compute), {}}});
      }
}

}  // namespace

double LawFit::loss(double compute_flop) const {
  return (e ? e->value : 0) + a.value * std::exp(-alpha.value * log_compute(compute_flop));
}

std::optional<double> LawFit::compute(double loss) const {
  const double above = loss - (e ? e->value : 0);
  if (above <= 0 || alpha.value <= 0) return std::nullopt;
  return pflops_day * std::exp(std::log(a.value / above) / alpha.value);
}

Evaluation evaluate(const Cells& cells, const std::vector<double>& means, const FitOptions& options,
                    const Evaluation* around) {
  Evaluation result;
  StudyFit& fit = result.fit;
  fit.options = options;
  fit.isoflop = fit_isoflop(cells, means, around ? &around->fit : nullptr);
  result.irreducible.resize(cells.variants.size());
  for (size_t v = 0; v < cells.variants.size(); ++v) {
    VariantFit variant = describe(cells, v);
    const auto points = law_points(cells, v, means, fit.isoflop, variant.over_isoflop_minima);
    fit_laws(variant, result.irreducible[v], points, around ? &around->irreducible[v] : nullptr);
    fit.variants.push_back(std::move(variant));
  }
  evaluate_curves(fit, cells);
  const auto baseline = std::find_if(fit.variants.begin(), fit.variants.end(),
                                     [&](const VariantFit& v) { return v.variant == options.baseline; });
  LAMINA_CHECK(baseline != fit.variants.end(), "baseline '{}'", options.baseline);
  for (const VariantFit& variant : fit.variants)
    if (&variant != &*baseline)
      for (const bool irreducible : {false, true})
        fit.gains.push_back(gain_of(variant, *baseline, irreducible, options.at));
  return result;
}

std::vector<Slot> estimates(StudyFit& fit) {
  std::vector<Slot> slots;
  for (VariantFit& variant : fit.variants)
    for (LawFit* law : {&*variant.power, &*variant.irreducible}) {
      slots.push_back({&law->a, Scale::logarithmic});
      slots.push_back({&law->alpha, law->e ? Scale::not_negative : Scale::linear});
      if (law->e) slots.push_back({&*law->e, Scale::not_negative});
      for (CurvePoint& point : law->curve) slots.push_back({&point.loss, Scale::logarithmic});
    }
  for (GainFit& gain : fit.gains) slots.push_back({&gain.gain, Scale::logarithmic});
  for (IsoFlopFit& isoflop : fit.isoflop) {
    for (IsoFlopCurve& curve : isoflop.curves)
      for (Estimate* optimum : {&curve.parameters_opt, &curve.tokens_opt, &curve.loss_opt})
        slots.push_back({optimum, Scale::logarithmic});
    if (isoflop.parameters_exponent) {
      slots.push_back({&*isoflop.parameters_exponent, Scale::linear});
      slots.push_back({&*isoflop.tokens_exponent, Scale::linear});
    }
  }
  return slots;
}

}  // namespace lamina::study
