// Where the points of a fit come from: the runs of a sweep, or a table.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "configs/schema/nearest.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "launch/study/scaling_law.h"
#include "launch/study/sweep_state.h"
#include "model/cost_model.h"
#include "trainer/record/run_folder.h"

namespace lamina::study {
namespace {

namespace fs = std::filesystem;

// ---- Sweeps ----

// The mean over the last `window` steps up to last_step; absent where one of them has no number.
std::optional<double> mean_of_last(const RunData& run, const std::string& key, int64_t window, int64_t last_step) {
  double sum = 0;
  int64_t count = 0;
  bool is_whole = true;
  const RowReader next = run.metrics();
  while (const std::optional<nlohmann::json> row = next()) {
    if ((*row)["step"].get<int64_t>() <= last_step - window) continue;
    const auto found = row->find(key);
    is_whole = is_whole && found != row->end() && found->is_number();  // null: it was not finite
    if (!is_whole) continue;
    sum += found->get<double>();
    ++count;
  }
  return is_whole && count > 0 ? std::optional(sum / static_cast<double>(count)) : std::nullopt;
}

// Why a run is no point yet; "" when it is one.
std::string unfinished(const RunData& run) {
  if (const std::optional<Divergence> divergence = find_divergence(run))
    return fmt::format("diverged at step {}", divergence->step);
  const int64_t step = run.last_row["step"].get<int64_t>(), num_steps = run.config.train.num_steps;
  return step < num_steps ? fmt::format("at step {} of {}", step, num_steps) : "";
}

FitPoint point_of(const SweepRun& entry, const RunData& run, const MetricOptions& options) {
  const Config& config = run.config;
  const fs::path rows = RunFolder{run.folder}.metrics();
  FitPoint point{entry.variant.empty() ? "all" : entry.variant, entry.size, entry.seed, 0, 0, 0, 0};
  const auto tokens = run.last_row.find("tokens");
  if (tokens == run.last_row.end() || !tokens->is_number())
    throw Error("{}: found no tokens in the last row, expected rows written by `lamina train`", rows.string());
  point.tokens = tokens->get<double>();
  point.parameters = static_cast<double>(model::active_parameters(config.model));
  point.compute = training_flops(run);
  const std::optional<double> mean =
      mean_of_last(run, "loss", options.window, config.train.num_steps);  // reads all rows
  double loss = std::nan("");
  if (options.metric == FitMetric::validation_loss) {
    const auto found = run.last_row.find("validation_loss");
    if (found == run.last_row.end())
      throw Error("{}: found no validation_loss at the last step, expected one: set data.validation, or --metric loss",
                  rows.string());
    if (found->is_number()) loss = found->get<double>();
  } else if (mean) {
    loss = *mean;
  }
  if (!std::isfinite(loss) || loss <= 0)
    throw Error("{}: found a loss that is no positive number at the end, expected one", rows.string());
  point.loss = loss;
  return point;
}

// ---- Tables ----

const std::vector<std::string> columns = {"variant",     "size",      "seed",    "parameters",       "tokens",
                                          "compute",     "loss",      "seq_len", "attention_layers", "attention_heads",
                                          "qk_head_dim", "v_head_dim"};
constexpr std::array attention_columns = {"seq_len", "attention_layers", "attention_heads", "qk_head_dim",
                                          "v_head_dim"};

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r"), last = text.find_last_not_of(" \t\r");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream in(line + ",");
  for (std::string field; std::getline(in, field, ',');) fields.push_back(trimmed(field));
  return fields;
}

struct TableRow {
  std::string origin;  // file:line
  std::map<std::string, std::string> fields;

  bool has(const std::string& name) const { return fields.contains(name); }
  std::string text(const std::string& name) const { return has(name) ? fields.at(name) : ""; }
  double number(const std::string& name) const {
    const std::string& text = fields.at(name);
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) || value <= 0)
      throw Error("{}: {}: found '{}', expected a positive number", origin, name, text);
    return value;
  }
  uint64_t seed() const {
    if (!has("seed")) return 0;
    const std::string& text = fields.at("seed");
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.empty() || error != std::errc() || end != text.data() + text.size())
      throw Error("{}: seed: found '{}', expected a whole number", origin, text);
    return value;
  }
};

void check_header(const std::vector<std::string>& header, const std::string& origin) {
  std::set<std::string> seen;
  for (const std::string& name : header) {
    if (std::find(columns.begin(), columns.end(), name) == columns.end()) {
      const auto near = nearest_name(name, columns);
      throw Error("{}: unknown column '{}', {}", origin, name,
                  near ? "did you mean " + *near + "?" : "expected those of `lamina fit --help`");
    }
    if (!seen.insert(name).second) throw Error("{}: found the column '{}' twice, expected it once", origin, name);
  }
  for (const char* name : {"variant", "loss"})
    if (!seen.contains(name)) throw Error("{}: found no column '{}', expected one", origin, name);
  if (!seen.contains("compute") && (!seen.contains("parameters") || !seen.contains("tokens")))
    throw Error("{}: found neither a column 'compute' nor both 'parameters' and 'tokens', expected one or the other",
                origin);
  size_t num_attention = 0;
  for (const char* name : attention_columns) num_attention += seen.contains(name) ? 1 : 0;
  if (num_attention > 0 && seen.contains("compute"))
    throw Error("{}: found 'compute' and columns of attention to count it from, expected only one of them", origin);
  if (num_attention > 0 && num_attention < attention_columns.size())
    throw Error(
        "{}: found {} of the five columns seq_len, attention_layers, attention_heads, qk_head_dim, v_head_dim, "
        "expected all or none",
        origin, num_attention);
}

FitPoint point_of(const TableRow& row) {
  FitPoint point{row.text("variant"), row.text("size"), row.seed(), 0, 0, 0, row.number("loss")};
  if (point.variant.empty()) throw Error("{}: variant: found nothing, expected a name", row.origin);
  if (row.has("parameters")) point.parameters = row.number("parameters");
  if (row.has("tokens")) point.tokens = row.number("tokens");
  if (row.has("compute")) {
    point.compute = row.number("compute");
    return point;
  }
  double per_token = 6 * point.parameters;
  if (row.has("seq_len"))
    per_token += 3 * row.number("attention_layers") * row.number("attention_heads") * row.number("seq_len") *
                 (row.number("qk_head_dim") + row.number("v_head_dim"));
  point.compute = per_token * point.tokens;
  return point;
}

}  // namespace

std::vector<FitPoint> sweep_points(const SweepData& sweep, const MetricOptions& options,
                                   std::vector<std::string>& warnings) {
  std::vector<FitPoint> points;
  std::optional<std::pair<std::string, RunIdentity>> first;
  const std::map<std::string, std::string> stopped = read_stopped(sweep.folder);
  for (const SweepRun& entry : sweep.runs) {
    const RunFolder files{sweep.folder / entry.name};
    if (!fs::exists(files.config()) || !fs::exists(files.metrics()) || fs::file_size(files.metrics()) == 0) {
      const std::optional<Divergence> divergence = read_divergence(files);  // in its first step
      warnings.push_back(
          fmt::format("{} is left out: {}", entry.name,
                      divergence ? fmt::format("diverged at step {}", divergence->step) : "not started"));
      continue;
    }
    const RunData run = read_run(files.root);
    if (const std::string why = unfinished(run); !why.empty()) {
      const auto early = stopped.find(entry.name);
      warnings.push_back(fmt::format("{} is left out: {}{}", entry.name, why,
                                     early == stopped.end() ? "" : ", stopped early: " + early->second));
      continue;
    }
    points.push_back(point_of(entry, run, options));
    const RunIdentity identity = read_identity(files.root);
    if (!first) first = {entry.name, identity};
    const std::string difference = first_data_difference(identity, first->second, /*validation_only=*/true);
    if (difference.empty()) continue;
    const std::string message = fmt::format("{}: {} as in {}: losses of other tokens can't be compared",
                                            files.root.string(), difference, first->first);
    if (!options.force) throw Error("{} (--force fits them all the same)", message);
    warnings.push_back(message);
  }
  return points;
}

std::vector<FitPoint> table_points(const fs::path& file) {
  std::istringstream in(io::read_file(file));
  std::vector<std::string> header;
  std::vector<FitPoint> points;
  std::map<std::tuple<std::string, std::string, double, double, uint64_t>, std::string> origins;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (trimmed(line).empty() || trimmed(line).starts_with('#')) continue;
    TableRow row{fmt::format("{}:{}", file.string(), number), {}};
    const std::vector<std::string> fields = fields_of(line);
    if (header.empty()) {
      check_header(fields, row.origin);
      header = fields;
      continue;
    }
    if (fields.size() != header.size())
      throw Error("{}: found {} fields, expected {} as in the header", row.origin, fields.size(), header.size());
    for (size_t i = 0; i < header.size(); ++i) row.fields[header[i]] = fields[i];
    points.push_back(point_of(row));
    const FitPoint& point = points.back();
    const auto [same, is_new] =
        origins.insert({{point.variant, point.size, point.compute, point.tokens, point.seed}, row.origin});
    if (!is_new)
      throw Error(
          "{}: found the variant, size, compute and seed of {} again, expected a column 'seed' that tells them apart",
          row.origin, same->second);
  }
  if (header.empty()) throw Error("{}: found no header, expected the columns' names", file.string());
  if (points.empty()) throw Error("{}: found no rows below the header, expected points", file.string());
  return points;
}

double parse_compute(const std::string& text) {
  const std::string number = trimmed(text);
  double value = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
  const std::string unit = trimmed(std::string(end, number.data() + number.size()));
  static const std::map<std::string, double> units = {{"", 1},
                                                      {"FLOP", 1},
                                                      {"FLOPs", 1},
                                                      {"PFLOP/s-day", pflops_day},
                                                      {"PFLOP/s-days", pflops_day},
                                                      {"PF-day", pflops_day},
                                                      {"PF-days", pflops_day}};
  const auto factor = units.find(unit);
  if (error != std::errc() || factor == units.end() || !std::isfinite(value) || value <= 0)
    throw Error("found '{}', expected a positive number of FLOP or PFLOP/s-days (4.8e20, '5.6 PFLOP/s-days')", text);
  return value * factor->second;
}

}  // namespace lamina::study
