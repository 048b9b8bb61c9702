#include "launch/study/sweep_tune.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/lines_from_end.h"
#include "launch/study/sweep_estimate.h"
#include "launch/study/sweep_state.h"

namespace lamina::study {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double infinite = std::numeric_limits<double>::infinity();

// The run's length and schedule at a rung.
void cut_to_rung(Config& config, RungSchedule schedule, int64_t steps) {
  const int64_t whole = config.train.num_steps;
  LrScheduleConfig& lr = config.train.lr_schedule;
  config.train.num_steps = steps;
  if (steps == whole) return;
  if (schedule == RungSchedule::continued) {
    if (lr.name == LrScheduleName::wsd) lr.decay_steps = 0;
    return;
  }
  lr.decay_steps = lr.decay_steps * steps / whole;
  if (lr.warmup_steps > 0)
    lr.warmup_steps = std::clamp<int64_t>(lr.warmup_steps * steps / whole, 1, steps - lr.decay_steps);
}

PlannedRun tuning_run(const SweepPlan& plan, const SweepCell& cell, size_t value, uint64_t seed, size_t rung) {
  const TunePlan& tune = *plan.tune;
  const PlannedRun& first = plan.runs[cell.runs.front()];
  PlannedRun run;
  run.id = {"", first.id.size, first.id.variant, seed};
  run.config = first.candidates[value];
  const int64_t steps = rung_steps(run.config, tune.rungs[rung]);
  run.id.name =
      fmt::format("{}-{}_{}-s{}", cell.name, tune.key.substr(tune.key.rfind('.') + 1), tune.values[value], seed);
  if (tune.schedule == RungSchedule::shortened) run.id.name += fmt::format("-{}steps", steps);
  run.config.run.name = run.id.name;
  run.config.run.output_dir = (plan.folder / "tuning" / run.id.name).string();
  run.config.run.seed = seed;
  run.config.checkpoint.keep = 1;
  cut_to_rung(run.config, tune.schedule, steps);
  return run;
}

// A folder that goes from rung to rung holds the configuration of the last one that was started.
void check_folder(const SweepPlan& plan, const SweepCell& cell, size_t value, uint64_t seed, const PlannedRun& run) {
  const int64_t stored = read_progress(run.config.run.output_dir).num_steps;
  for (size_t rung = 0; rung < plan.tune->rungs.size(); ++rung) {
    const PlannedRun other = tuning_run(plan, cell, value, seed, rung);
    if (other.id.name == run.id.name && other.config.train.num_steps == stored) return check_same_run(other);
  }
  check_same_run(run);
}

json row_of_step(const fs::path& path, int64_t step) {
  if (!fs::exists(path)) return {};
  io::LinesFromEnd lines(path);
  while (const std::optional<io::Line> line = lines.next()) {
    json row = json::parse(line->text, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) continue;
    const int64_t found = row["step"].get<int64_t>();
    if (found == step) return row;
    if (found < step) break;
  }
  return {};
}

// The validation loss at the run's end; infinite when it diverged, absent when it isn't there. A row counts with its checkpoint:
// without that, it will be made again.
std::optional<double> loss_at_end(const PlannedRun& run) {
  const RunFolder files{run.config.run.output_dir};
  const int64_t steps = run.config.train.num_steps;
  const RunProgress progress = read_progress(files.root);
  if (progress.step >= steps) {
    const json row = row_of_step(files.metrics(), steps);
    const auto loss = row.is_object() ? row.find("validation_loss") : row.end();
    if (row.is_object() && loss != row.end()) return loss->is_number() ? loss->get<double>() : infinite;
    if (progress.step > steps)
      throw Error(
          "{}: is at step {} without a validation at step {}, expected one: remove the folder to tune with this rung",
          files.root.string(), progress.step, steps);
  }
  if (read_divergence(files)) return infinite;
  return std::nullopt;
}

size_t num_kept(const TunePlan& tune, size_t count) {
  return std::max<size_t>(1, static_cast<size_t>(std::ceil(tune.keep * static_cast<double>(count) - 1e-9)));
}

bool is_edge(const TunePlan& tune, size_t chosen) {
  std::vector<double> numbers;
  for (const std::string& value : tune.values) {
    const std::optional<double> number = parse_number(value);
    if (!number) return false;  // names have no order
    numbers.push_back(*number);
  }
  const auto [least, most] = std::minmax_element(numbers.begin(), numbers.end());
  return numbers[chosen] == *least || numbers[chosen] == *most;
}

// Reads a rung of `values`; whether all of it is known.
bool read_rung(const SweepPlan& plan, const SweepCell& cell, size_t rung, const std::vector<size_t>& values,
               CellTuning& out) {
  for (const size_t value : values) {
    RungEntry entry{rung, value, 0, {}, false};
    for (const uint64_t seed : plan.tune->seeds) {
      PlannedRun run = tuning_run(plan, cell, value, seed, rung);
      check_folder(plan, cell, value, seed, run);
      entry.steps = run.config.train.num_steps;
      entry.losses.push_back(loss_at_end(run));
      if (!entry.losses.back()) out.open.push_back(std::move(run));
    }
    out.entries.push_back(std::move(entry));
  }
  return out.open.empty();
}

CellTuning read_cell(const SweepPlan& plan, const SweepCell& cell) {
  const TunePlan& tune = *plan.tune;
  CellTuning out;
  std::vector<size_t> alive(tune.values.size());
  std::iota(alive.begin(), alive.end(), 0);
  for (size_t rung = 0; rung < tune.rungs.size(); ++rung) {
    const size_t begin = out.entries.size();
    if (!read_rung(plan, cell, rung, alive, out)) return out;
    std::vector<RungEntry*> ranking;
    for (size_t i = begin; i < out.entries.size(); ++i) ranking.push_back(&out.entries[i]);
    std::stable_sort(ranking.begin(), ranking.end(),
                     [](const RungEntry* one, const RungEntry* other) { return *one->mean() < *other->mean(); });
    ranking.resize(rung + 1 == tune.rungs.size() ? 1 : num_kept(tune, alive.size()));
    std::erase_if(ranking, [](const RungEntry* entry) { return std::isinf(*entry->mean()); });
    out.is_failed = ranking.empty();
    if (out.is_failed) return out;
    alive.clear();
    for (RungEntry* entry : ranking) {
      entry->goes_on = true;
      alive.push_back(entry->value);
    }
    std::sort(alive.begin(), alive.end());
    if (alive.size() > 1) continue;
    out.chosen = alive.front();
    out.is_at_edge = is_edge(tune, alive.front());
    return out;
  }
  return out;
}

// FLOP of the rungs from `rung` on, `count` values in the first of them.
double rungs_work(const SweepPlan& plan, const SweepCell& cell, size_t rung, size_t count) {
  const TunePlan& tune = *plan.tune;
  double work = 0;
  for (; rung < tune.rungs.size() && (count > 1 || rung == 0); ++rung, count = num_kept(tune, count)) {
    double flops = run_flops(tuning_run(plan, cell, 0, 0, rung).config);
    if (tune.schedule == RungSchedule::continued && rung > 0)
      flops -= run_flops(tuning_run(plan, cell, 0, 0, rung - 1).config);
    work += flops * static_cast<double>(count * tune.seeds.size());
  }
  return work;
}

std::string loss_text(const RungEntry& entry) {
  const auto one = [](const std::optional<double>& loss) {
    return !loss ? std::string("not yet") : std::isinf(*loss) ? "diverged" : fmt::format("{:.4f}", *loss);
  };
  std::string text = one(entry.mean());
  if (entry.losses.size() < 2) return text;
  std::vector<std::string> all;
  for (const std::optional<double>& loss : entry.losses) all.push_back(one(loss));
  return fmt::format("{} ({})", text, fmt::join(all, ", "));
}

// How the runs were made, in one paragraph.
std::string method_text(const SweepPlan& plan) {
  const TunePlan& tune = *plan.tune;
  std::vector<std::string> rungs;
  for (const double rung : tune.rungs) rungs.push_back(fmt::format("{:g} %", 100 * rung));
  std::vector<uint64_t> seeds;
  for (const PlannedRun& run : plan.runs)
    if (std::find(seeds.begin(), seeds.end(), run.id.seed) == seeds.end()) seeds.push_back(run.id.seed);
  return fmt::format(
      "Validation loss after {} of the steps, {}seed{} {} (the study's: {}). {:g} % of the values go on from each "
      "rung; the best at the "
      "last one, or the last one left, is chosen. {}\n",
      fmt::join(rungs, ", "), tune.seeds.size() > 1 ? "mean over " : "", tune.seeds.size() > 1 ? "s" : "",
      fmt::join(tune.seeds, ", "), fmt::join(seeds, ", "), 100 * tune.keep,
      tune.schedule == RungSchedule::continued ? "A rung's runs go on from those of the rung before, at the rates of a "
                                                 "run of full length: before the last rung their rate has "
                                                 "not decayed."
                                               : "Each rung's run is one of its own, from the first step, with warm-up "
                                                 "and decay shortened in proportion: a short run's best "
                                                 "value may differ from a long one's.");
}

}  // namespace

std::optional<double> RungEntry::mean() const {
  double sum = 0;
  for (const std::optional<double>& loss : losses) {
    if (!loss) return std::nullopt;
    sum += *loss;
  }
  return sum / static_cast<double>(losses.size());
}

std::vector<CellTuning> read_tuning(const SweepPlan& plan) {
  std::vector<CellTuning> all;
  for (const SweepCell& cell : plan.tune->cells) all.push_back(read_cell(plan, cell));
  return all;
}

bool is_complete(const std::vector<CellTuning>& tuning) {
  return std::all_of(tuning.begin(), tuning.end(), [](const CellTuning& cell) { return cell.chosen.has_value(); });
}

SweepPlan next_rung(const SweepPlan& plan, const std::vector<CellTuning>& tuning) {
  SweepPlan rung;
  rung.name = plan.name + "-tuning";
  rung.folder = plan.folder / "tuning";
  rung.ranks = plan.ranks;
  for (const CellTuning& cell : tuning) rung.runs.insert(rung.runs.end(), cell.open.begin(), cell.open.end());
  return rung;
}

void apply_tuning(SweepPlan& plan, const std::vector<CellTuning>& tuning) {
  for (size_t cell = 0; cell < tuning.size(); ++cell)
    if (tuning[cell].chosen)
      for (const size_t run : plan.tune->cells[cell].runs) {
        plan.runs[run].config = plan.runs[run].candidates[*tuning[cell].chosen];
        plan.runs[run].awaits_tuning = false;
      }
}

std::map<std::string, double> tuning_work(const SweepPlan& plan) {
  std::map<std::string, double> work;
  for (const SweepCell& cell : plan.tune->cells)
    work[plan.runs[cell.runs.front()].id.size] += rungs_work(plan, cell, 0, plan.tune->values.size());
  return work;
}

std::map<std::string, double> later_tuning_work(const SweepPlan& plan, const std::vector<CellTuning>& tuning) {
  std::map<std::string, double> work;
  for (size_t i = 0; i < tuning.size(); ++i) {
    if (tuning[i].open.empty()) continue;
    const SweepCell& cell = plan.tune->cells[i];
    const size_t rung = tuning[i].entries.back().rung;
    const auto count = std::count_if(tuning[i].entries.begin(), tuning[i].entries.end(),
                                     [&](const RungEntry& entry) { return entry.rung == rung; });
    work[plan.runs[cell.runs.front()].id.size] +=
        rungs_work(plan, cell, rung + 1, num_kept(*plan.tune, static_cast<size_t>(count)));
  }
  return work;
}

std::string tuning_text(const SweepPlan& plan, const std::vector<CellTuning>& tuning) {
  const TunePlan& tune = *plan.tune;
  std::vector<std::vector<std::string>> rows = {{"cell", tune.key}};
  for (const double rung : tune.rungs) rows[0].push_back(fmt::format("{:g} %", 100 * rung));
  rows[0].push_back("");
  for (size_t i = 0; i < tuning.size(); ++i)
    for (size_t value = 0; value < tune.values.size(); ++value) {
      std::vector<std::string> row = {tune.cells[i].name, tune.values[value]};
      row.resize(tune.rungs.size() + 3);
      for (const RungEntry& entry : tuning[i].entries)
        if (entry.value == value) row[2 + entry.rung] = loss_text(entry);
      if (tuning[i].chosen == value) row.back() = tuning[i].is_at_edge ? "chosen, at the edge" : "chosen";
      rows.push_back(std::move(row));
    }
  std::vector<size_t> widths(rows[0].size(), 3);
  for (const auto& row : rows)
    for (size_t column = 0; column < row.size(); ++column)
      widths[column] = std::max(widths[column], row[column].size());
  std::string text;
  const auto add_line = [&](const std::vector<std::string>& row, char fill) {
    for (size_t column = 0; column < row.size(); ++column) {
      text += fmt::format("| {}{} ", row[column], std::string(widths[column] - row[column].size(), fill));
    }
    text += "|\n";
  };
  for (size_t row = 0; row < rows.size(); ++row) {
    add_line(rows[row], ' ');
    if (row == 0) add_line(std::vector<std::string>(widths.size(), "-"), '-');
  }
  return method_text(plan) + "\n" + text;
}

std::vector<std::string> tuning_warnings(const SweepPlan& plan, const std::vector<CellTuning>& tuning) {
  const TunePlan& tune = *plan.tune;
  std::vector<std::string> warnings;
  for (const uint64_t seed : tune.seeds)
    if (std::any_of(plan.runs.begin(), plan.runs.end(), [&](const PlannedRun& run) { return run.id.seed == seed; }))
      warnings.push_back(
          fmt::format("tune.seeds: seed {} is the study's too: its runs are judged by what was chosen on them", seed));
  for (size_t i = 0; i < tuning.size(); ++i)
    if (tuning[i].is_at_edge)
      warnings.push_back(fmt::format("tune: {}: the best {}, {}, is at the edge of the range: widen the range",
                                     tune.cells[i].name, tune.key, tune.values[*tuning[i].chosen]));
  return warnings;
}

void write_tuning(const SweepPlan& plan, const std::vector<CellTuning>& tuning) {
  const TunePlan& tune = *plan.tune;
  json document = {{"key", tune.key},
                   {"values", tune.values},
                   {"seeds", tune.seeds},
                   {"rungs", tune.rungs},
                   {"keep", tune.keep},
                   {"schedule", tune.schedule == RungSchedule::continued ? "continued" : "shortened"},
                   {"warnings", tuning_warnings(plan, tuning)},
                   {"cells", json::array()}};
  for (size_t i = 0; i < tuning.size(); ++i) {
    json table = json::array(), runs = json::array();
    for (const RungEntry& entry : tuning[i].entries) {
      json losses = json::array();
      for (const std::optional<double>& loss : entry.losses)
        losses.push_back(!loss ? json("not yet") : std::isinf(*loss) ? json("diverged") : json(*loss));
      table.push_back({{"value", tune.values[entry.value]},
                       {"rung", tune.rungs[entry.rung]},
                       {"steps", entry.steps},
                       {"validation_losses", losses},
                       {"goes_on", entry.goes_on}});
    }
    for (const size_t run : tune.cells[i].runs) runs.push_back(plan.runs[run].id.name);
    document["cells"].push_back({{"name", tune.cells[i].name},
                                 {"chosen", tuning[i].chosen ? json(tune.values[*tuning[i].chosen]) : json()},
                                 {"at_edge", tuning[i].is_at_edge},
                                 {"table", table},
                                 {"runs", runs}});
  }
  io::write_file_atomically(plan.folder / "tuning.json", document.dump(1) + "\n");
  std::string text = fmt::format("# {}: {}\n\n{}", plan.name, tune.key, tuning_text(plan, tuning));
  for (const std::string& warning : tuning_warnings(plan, tuning)) text += fmt::format("\nWarning: {}\n", warning);
  io::write_file_atomically(plan.folder / "tuning.md", text);
}

}  // namespace lamina::study
