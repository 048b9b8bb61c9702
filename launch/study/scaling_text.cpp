#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/study/scaling_law.h"

namespace lamina::study {
namespace {

using nlohmann::json;

// Columns as wide as their widest cell, the first one to the left, the others to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const {
    std::vector<size_t> widths(rows_.front().size());
    for (const auto& row : rows_)
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    std::string text;
    for (const auto& row : rows_) {
      std::string line = fmt::format("  {:<{}}", row[0], widths[0]);
      for (size_t i = 1; i < row.size(); ++i) line += fmt::format("  {:>{}}", row[i], widths[i]);
      text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
    }
    return text;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

// "1.883 [1.871, 1.895]", to so many significant digits.
std::string text_of(const Estimate& estimate, int digits) {
  const auto number = [&](double value) {
    return std::isinf(value) ? std::string("no bound") : fmt::format("{:#.{}g}", value, digits);
  };
  std::string text = number(estimate.value);
  if (estimate.interval)
    text += fmt::format(" [{}, {}]", number(estimate.interval->low), number(estimate.interval->high));
  return text;
}

std::string compute_text(double flop) {
  return fmt::format("{:.3g} PFLOP/s-days ({:.3g} FLOP)", flop / pflops_day, flop);
}

std::string head_text(const StudyFit& fit) {
  double least = fit.points.front().compute, most = least;
  for (const FitPoint& point : fit.points) {
    least = std::min(least, point.compute);
    most = std::max(most, point.compute);
  }
  std::string text = fmt::format("points       {} of {} variants, {}; compute {} to {}\n", fit.points.size(),
                                 fit.variants.size(), fit.options.loss_name, compute_text(least), compute_text(most));
  const bool any_seeds =
      std::any_of(fit.variants.begin(), fit.variants.end(), [](const VariantFit& v) { return v.max_seeds > 1; });
  if (any_seeds && fit.options.num_resamples > 0)
    text += fmt::format("intervals    95 % over seeds, {} resamples{}\n", fit.options.num_resamples,
                        fit.variants.size() < 2 ? ""
                        : fit.paired            ? ", variants together (their seeds match)"
                                                : ", variants apart where their seeds do not match");
  if (!fit.interval_problem.empty())
    text += fmt::format("{}{}\n", any_seeds && fit.options.num_resamples > 0 ? "             " : "intervals    none: ",
                        fit.interval_problem);
  return text;
}

std::string seeds_text(const VariantFit& variant) {
  return variant.min_seeds == variant.max_seeds ? fmt::format("{}", variant.max_seeds)
                                                : fmt::format("{}-{}", variant.min_seeds, variant.max_seeds);
}

std::string laws_text(const StudyFit& fit) {
  std::string text = "\nL = A C^-alpha                C in PFLOP/s-days, so A is the loss at one of them\n";
  Table power({"variant", "cells", "seeds", "A", "alpha", "rms of log L"});
  std::string problems;
  const auto cells = [](const VariantFit& v) { return fmt::format("{}", v.num_cells); };
  for (const VariantFit& v : fit.variants) {
    if (v.power)
      power.add({v.variant, cells(v), seeds_text(v), text_of(v.power->a, 4), text_of(v.power->alpha, 3),
                 fmt::format("{:.1e}", v.power->rms)});
    else
      problems += fmt::format("  {}: none: {}\n", v.variant, v.power_problem);
    if (v.over_isoflop_minima) problems += fmt::format("  {}: over the minima of its isoFLOP curves\n", v.variant);
  }
  text += power.text() + problems;
  text += "\nL = E + A C^-alpha\n";
  Table irreducible({"variant", "E", "A", "alpha", "rms of log L"});
  problems.clear();
  bool any = false;
  for (const VariantFit& v : fit.variants) {
    any = any || v.irreducible;
    if (v.irreducible)
      irreducible.add({v.variant, text_of(*v.irreducible->e, 4), text_of(v.irreducible->a, 4),
                       text_of(v.irreducible->alpha, 3), fmt::format("{:.1e}", v.irreducible->rms)});
    else
      problems += fmt::format("  {}: not determined by these points: {}\n", v.variant, v.irreducible_problem);
  }
  return text + (any ? irreducible.text() : "") + problems;
}

std::string gains_text(const StudyFit& fit) {
  if (fit.gains.empty()) return "";
  std::string text = fmt::format("\nGain over {} at C = {}: the compute it needs for the same loss, over C\n",
                                 fit.options.baseline, compute_text(fit.options.at));
  Table table({"variant", "law", "gain"});
  std::string notes;
  for (const GainFit& gain : fit.gains) {
    table.add({gain.variant, gain.form, gain.infinite ? "more than any compute" : text_of(gain.gain, 4)});
    if (!gain.note.empty()) notes += fmt::format("  outside the measured range: {} ({})\n", gain.note, gain.form);
  }
  return text + table.text() + notes;
}

std::string isoflop_text(const StudyFit& fit) {
  if (fit.isoflop.empty()) return "";
  std::string text = "\nisoFLOP: the best size per budget, from a parabola of L over log N\n";
  std::string notes;
  Table table({"variant", "PFLOP/s-days", "sizes", "N_opt", "D_opt", "L"});
  for (const IsoFlopFit& isoflop : fit.isoflop) {
    for (const IsoFlopCurve& curve : isoflop.curves) {
      const std::string compute = fmt::format("{:.3g}", curve.compute / pflops_day);
      const std::string sizes = fmt::format("{}", curve.parameters.size());
      if (curve.problem.empty())
        table.add({isoflop.variant, compute, sizes, text_of(curve.parameters_opt, 3), text_of(curve.tokens_opt, 3),
                   text_of(curve.loss_opt, 4)});
      else
        table.add({isoflop.variant, compute, sizes, "-", "-", "-"});
      if (!curve.problem.empty())
        notes += fmt::format("  {} at {} PFLOP/s-days: {}\n", isoflop.variant, compute, curve.problem);
    }
    if (isoflop.parameters_exponent)
      notes += fmt::format("  {}: N_opt ~ C^{}, D_opt ~ C^{}\n", isoflop.variant,
                           text_of(*isoflop.parameters_exponent, 3), text_of(*isoflop.tokens_exponent, 3));
  }
  return text + table.text() + notes;
}

// JSON has no infinities: null stands for them, and for what is not there.
json finite(double value) {
  return std::isfinite(value) ? json(value) : json();
}

json json_of(const Estimate& estimate) {
  json object = {{"value", finite(estimate.value)}};
  if (estimate.interval) {
    object["low"] = finite(estimate.interval->low);
    object["high"] = finite(estimate.interval->high);
  }
  return object;
}

json json_of(const std::optional<Estimate>& estimate) {
  return estimate ? json_of(*estimate) : json();
}

json json_of(const std::optional<LawFit>& law) {
  if (!law) return {};
  json object = {{"a", json_of(law->a)}, {"alpha", json_of(law->alpha)}, {"rms", law->rms}, {"curve", json::array()}};
  if (law->e) object["e"] = json_of(*law->e);
  for (const CurvePoint& point : law->curve) {
    json loss = json_of(point.loss);
    loss["compute"] = point.compute;
    object["curve"].push_back(std::move(loss));
  }
  return object;
}

json json_of(const IsoFlopFit& isoflop) {
  json object = {{"variant", isoflop.variant},
                 {"parameters_exponent", json_of(isoflop.parameters_exponent)},
                 {"tokens_exponent", json_of(isoflop.tokens_exponent)},
                 {"curves", json::array()}};
  for (const IsoFlopCurve& curve : isoflop.curves) {
    const bool has_optimum = curve.problem.empty();
    object["curves"].push_back({{"compute", curve.compute},
                                {"parameters", curve.parameters},
                                {"tokens", curve.tokens},
                                {"losses", curve.losses},
                                {"centre", curve.centre},
                                {"coefficients", {curve.c0, curve.c1, curve.c2}},
                                {"problem", curve.problem},
                                {"parameters_opt", has_optimum ? json_of(curve.parameters_opt) : json()},
                                {"tokens_opt", has_optimum ? json_of(curve.tokens_opt) : json()},
                                {"loss_opt", has_optimum ? json_of(curve.loss_opt) : json()}});
  }
  return object;
}

}  // namespace

std::string to_text(const StudyFit& fit) {
  return head_text(fit) + laws_text(fit) + gains_text(fit) + isoflop_text(fit);
}

json to_json(const StudyFit& fit) {
  json document = {{"format", "lamina fit"},
                   {"format_version", 1},
                   {"pflops_day", pflops_day},
                   {"loss", fit.options.loss_name},
                   {"baseline", fit.options.baseline},
                   {"at", fit.options.at},
                   {"num_resamples", fit.options.num_resamples},
                   {"paired", fit.paired},
                   {"interval_problem", fit.interval_problem}};
  for (const char* list : {"points", "variants", "gains", "isoflop"}) document[list] = json::array();
  for (const FitPoint& p : fit.points)
    document["points"].push_back({{"variant", p.variant},
                                  {"size", p.size},
                                  {"seed", p.seed},
                                  {"parameters", p.parameters},
                                  {"tokens", p.tokens},
                                  {"compute", p.compute},
                                  {"loss", p.loss}});
  for (const VariantFit& v : fit.variants)
    document["variants"].push_back({{"variant", v.variant},
                                    {"num_points", v.num_points},
                                    {"num_cells", v.num_cells},
                                    {"min_seeds", v.min_seeds},
                                    {"max_seeds", v.max_seeds},
                                    {"min_compute", v.min_compute},
                                    {"max_compute", v.max_compute},
                                    {"over_isoflop_minima", v.over_isoflop_minima},
                                    {"power", json_of(v.power)},
                                    {"power_problem", v.power_problem},
                                    {"irreducible", json_of(v.irreducible)},
                                    {"irreducible_problem", v.irreducible_problem}});
  for (const GainFit& g : fit.gains)
    document["gains"].push_back({{"variant", g.variant},
                                 {"baseline", g.baseline},
                                 {"law", g.form},
                                 {"compute", g.compute},
                                 {"infinite", g.infinite},
                                 {"gain", g.infinite ? json() : json_of(g.gain)},
                                 {"note", g.note}});
  for (const IsoFlopFit& isoflop : fit.isoflop) document["isoflop"].push_back(json_of(isoflop));
  return document;
}

}  // namespace lamina::study
