#include "launch/study/sweep_early_stop.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "core/io/lines_from_end.h"
#include "trainer/record/run_folder.h"

namespace lamina::study {

using nlohmann::json;

EarlyStopper::EarlyStopper(const SweepPlan& plan)
    : plan_(plan), cell_of_(plan.runs.size()), losses_(plan.runs.size()), bytes_(plan.runs.size()) {
  if (!plan.early_stop) return;
  for (size_t cell = 0; cell < plan.early_stop->cells.size(); ++cell)
    for (const size_t run : plan.early_stop->cells[cell].runs) cell_of_[run] = cell;
}

const EarlyStopper::Losses& EarlyStopper::losses(size_t run) {
  const std::filesystem::path path = RunFolder{plan_.runs[run].config.run.output_dir}.metrics();
  std::error_code none;
  const uintmax_t bytes = std::filesystem::file_size(path, none);
  if (none || bytes == bytes_[run]) return losses_[run];
  if (bytes < bytes_[run]) losses_[run].clear();  // a run that goes on drops the rows after its checkpoint
  bytes_[run] = bytes;
  const int64_t known = losses_[run].empty() ? 0 : losses_[run].rbegin()->first;
  io::LinesFromEnd lines(path);
  while (const std::optional<io::Line> line = lines.next()) {
    const json row = json::parse(line->text, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer()) continue;
    const int64_t step = row["step"].get<int64_t>();
    if (step <= known) break;
    if (const auto loss = row.find("validation_loss"); loss != row.end() && loss->is_number())
      losses_[run][step] = loss->get<double>();
  }
  return losses_[run];
}

std::string EarlyStopper::reason(size_t run) {
  if (!plan_.early_stop) return "";
  const EarlyStop& stop = *plan_.early_stop;
  const TrainConfig& train = plan_.runs[run].config.train;
  const Losses& mine = losses(run);
  for (auto at = mine.rbegin(); at != mine.rend(); ++at) {
    const auto [step, loss] = *at;
    if (step < rung_steps(plan_.runs[run].config, stop.after)) break;
    if (step >= train.num_steps) continue;  // it has ended
    std::optional<double> best;
    size_t best_run = run;
    for (const size_t other : stop.cells[cell_of_[run]].runs) {
      if (other == run) continue;
      const Losses& theirs = losses(other);
      const auto same = theirs.find(step);
      if (same == theirs.end() || (best && *best <= same->second)) continue;
      best = same->second;
      best_run = other;
    }
    if (!best) continue;
    if (loss <= *best + stop.margin) return "";
    return fmt::format("validation {:.4f} at step {} is {:.4f} above that of {}, more than early_stop.margin {:g}",
                       loss, step, loss - *best, plan_.runs[best_run].id.name, stop.margin);
  }
  return "";
}

}  // namespace lamina::study
