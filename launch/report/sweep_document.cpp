#include "launch/report/sweep_document.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "core/base/error.h"
#include "launch/report/metrics_digest.h"
#include "launch/report/run_document.h"
#include "launch/report/series.h"
#include "launch/study/scaling_law.h"
#include "launch/study/sweep_state.h"
#include "model/cost_model.h"
#include "trainer/record/run_folder.h"

namespace lamina::report {
namespace {

using nlohmann::json;
using study::RunData;
using study::SweepData;
using study::SweepRun;

// A run that was not started, or not far enough for a first step, has nothing to read.
bool has_begun(const RunFolder& files) {
  std::error_code no_size;
  return std::filesystem::exists(files.config()) && std::filesystem::exists(files.metrics()) &&
         std::filesystem::file_size(files.metrics(), no_size) > 0 && !no_size;
}

json last_of(const Thinner* series) {
  return series && series->last_number() ? json(*series->last_number()) : json();
}

bool is_done(const RunData& run) {
  return state_text(run) == "done";
}

json run_row(const SweepRun& entry, const RunData& run, const std::string& why_stopped, size_t max_points) {
  const MetricsDigest digest = digest_metrics(run, {"loss", "validation_loss"}, /*with_tasks=*/false, max_points);
  const double tokens = run.last_row["tokens"].get<double>(), time_zero = digest.first_time();
  json series = json::object();
  for (const auto& [key, thinner] : digest.series) series[key] = to_json(thinner.series(), time_zero);
  return {{"name", entry.name},
          {"size", entry.size},
          {"variant", entry.variant},
          {"seed", entry.seed},
          {"state", is_done(run) || why_stopped.empty()
                        ? state_text(run)
                        : fmt::format("{}, stopped early: {}", state_text(run), why_stopped)},
          {"active_parameters", model::active_parameters(run.config.model)},
          {"compute", study::training_flops(run)},
          {"tokens", tokens},
          {"loss", last_of(digest.find("loss"))},
          {"validation_loss", last_of(digest.find("validation_loss"))},
          {"time_zero", time_zero},
          {"starts", to_json(digest.starts, time_zero)},
          {"series", series}};
}

// Hidden-state norms of the finished runs' last logged step, by (size, variant).
class Norms {
 public:
  void add(const SweepRun& entry, const RunData& run) {
    json sites = json::array();
    std::vector<double> values;
    int64_t last = 0;
    const study::RowReader next = run.layers();
    while (const std::optional<json> row = next()) {
      const int64_t step = (*row)["step"].get<int64_t>();
      if (step != last) {
        sites.clear();
        values.clear();
      }
      last = step;
      const auto rms = row->find("hidden_rms");
      if (rms == row->end() || !rms->is_number()) continue;
      sites.push_back({{"layer", row->value("layer", int64_t{0})}, {"sublayer", row->value("sublayer", "")}});
      values.push_back(rms->get<double>());
    }
    if (last == 0) return;  // no row
    const auto key = std::pair(entry.size, entry.variant);
    auto [at, is_new] = groups_.try_emplace(key);
    if (is_new) order_.push_back(key);
    Group& group = at->second;
    if (is_new) group = {sites, std::vector<double>(values.size(), 0.0), 0};
    if (group.sites != sites)
      throw Error("{}: layers.jsonl has other sublayers than the other runs of size '{}' and variant '{}'",
                  run.folder.string(), entry.size, entry.variant);
    for (size_t i = 0; i < values.size(); ++i) group.sum[i] += values[i];
    ++group.num_runs;
  }
  json document() const {
    json out = json::array();
    for (const auto& key : order_) {
      const Group& group = groups_.at(key);
      std::vector<double> mean = group.sum;
      for (double& value : mean) value /= group.num_runs;
      out.push_back({{"size", key.first},
                     {"variant", key.second},
                     {"num_runs", group.num_runs},
                     {"sites", group.sites},
                     {"hidden_rms", mean}});
    }
    return out;
  }

 private:
  struct Group {
    json sites;
    std::vector<double> sum;
    int num_runs = 0;
  };
  std::map<std::pair<std::string, std::string>, Group> groups_;
  std::vector<std::pair<std::string, std::string>> order_;
};

// JSON has no infinity: an interval without an upper end has null there.
json number(double value) {
  return std::isfinite(value) ? json(value) : json();
}

json estimate(const study::Estimate& from) {
  json out = {{"value", number(from.value)}};
  if (from.interval) out["interval"] = {number(from.interval->low), number(from.interval->high)};
  return out;
}

json law(const study::LawFit& from) {
  json curve = json::array();
  for (const study::CurvePoint& point : from.curve) {
    json entry = estimate(point.loss);
    entry["compute"] = point.compute;
    curve.push_back(std::move(entry));
  }
  json out = {{"a", estimate(from.a)}, {"alpha", estimate(from.alpha)}, {"rms", from.rms}, {"curve", curve}};
  if (from.e) out["e"] = estimate(*from.e);
  return out;
}

json isoflop(const study::IsoFlopFit& from) {
  json curves = json::array();
  for (const study::IsoFlopCurve& curve : from.curves) {
    json entry = {{"compute", curve.compute}, {"parameters", curve.parameters}, {"tokens", curve.tokens},
                  {"losses", curve.losses},   {"centre", curve.centre},         {"c", {curve.c0, curve.c1, curve.c2}},
                  {"problem", curve.problem}};
    if (curve.problem.empty()) {
      entry["parameters_opt"] = estimate(curve.parameters_opt);
      entry["loss_opt"] = estimate(curve.loss_opt);
    }
    curves.push_back(std::move(entry));
  }
  json out = {{"variant", from.variant}, {"curves", curves}};
  if (from.parameters_exponent) out["parameters_exponent"] = estimate(*from.parameters_exponent);
  if (from.tokens_exponent) out["tokens_exponent"] = estimate(*from.tokens_exponent);
  return out;
}

json fit_document(const study::StudyFit& fit) {
  json points = json::array(), variants = json::array(), gains = json::array(), budgets = json::array();
  for (const study::FitPoint& point : fit.points)
    points.push_back({{"variant", point.variant},
                      {"size", point.size},
                      {"seed", point.seed},
                      {"compute", point.compute},
                      {"loss", point.loss}});
  for (const study::VariantFit& variant : fit.variants) {
    json entry = {{"variant", variant.variant},
                  {"num_points", variant.num_points},
                  {"num_cells", variant.num_cells},
                  {"over_isoflop_minima", variant.over_isoflop_minima},
                  {"power_problem", variant.power_problem},
                  {"irreducible_problem", variant.irreducible_problem}};
    if (variant.power) entry["power"] = law(*variant.power);
    if (variant.irreducible) entry["irreducible"] = law(*variant.irreducible);
    variants.push_back(std::move(entry));
  }
  for (const study::GainFit& gain : fit.gains)
    gains.push_back({{"variant", gain.variant},
                     {"baseline", gain.baseline},
                     {"form", gain.form},
                     {"compute", gain.compute},
                     {"infinite", gain.infinite},
                     {"gain", estimate(gain.gain)},
                     {"note", gain.note}});
  for (const study::IsoFlopFit& entry : fit.isoflop) budgets.push_back(isoflop(entry));
  return {{"points", points},   {"variants", variants},           {"gains", gains},
          {"isoflop", budgets}, {"unit_flop", study::pflops_day}, {"interval_problem", fit.interval_problem}};
}

json fit_of(const SweepData& sweep) {
  std::vector<std::string> warnings;
  json out;
  try {
    out = fit_document(study::fit_study(study::sweep_points(sweep, {}, warnings)));
  } catch (const Error& refusal) {
    out = {{"problem", refusal.what()}};
  }
  out["warnings"] = warnings;
  return out;
}

void add_new(json& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), json(name)) == names.end()) names.push_back(name);
}

}  // namespace

json sweep_document(const SweepData& sweep) {
  json runs = json::array(), variants = json::array(), sizes = json::array();
  Norms norms;
  const size_t max_points = limits_for(sweep.runs.size()).points;
  std::map<std::string, std::string> stopped = study::read_stopped(sweep.folder);
  for (const SweepRun& entry : sweep.runs) {
    add_new(variants, entry.variant);
    add_new(sizes, entry.size);
    const RunFolder folder{sweep.folder / entry.name};
    if (!has_begun(folder)) {
      const auto divergence = read_divergence(folder);  // in its first step
      runs.push_back({{"name", entry.name},
                      {"size", entry.size},
                      {"variant", entry.variant},
                      {"seed", entry.seed},
                      {"state", divergence ? fmt::format("diverged at step {}", divergence->step) : "not started"},
                      {"series", json::object()}});
      continue;
    }
    const RunData run = study::read_run(folder.root);
    runs.push_back(run_row(entry, run, stopped[entry.name], max_points));
    if (is_done(run)) norms.add(entry, run);
  }
  return {{"name", sweep.name}, {"folder", sweep.folder.string()}, {"variants", variants}, {"sizes", sizes},
          {"runs", runs},       {"norms", norms.document()},       {"fit", fit_of(sweep)}};
}

}  // namespace lamina::report
