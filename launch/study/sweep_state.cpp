#include "launch/study/sweep_state.h"

#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <fstream>
#include <optional>

#include "configs/schema/batch_plan.h"
#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/folder_lock.h"
#include "core/io/lines_from_end.h"
#include "trainer/record/run_folder.h"

namespace lamina::study {
namespace {

namespace fs = std::filesystem;

// What says how and where a run computes, not what.
constexpr std::array<const char*, 11> free_keys = {
    "run.name",        "run.output_dir",    "run.device",  "run.num_threads", "parallel.", "train.micro_batch_size",
    "train.recompute", "train.max_minutes", "checkpoint.", "logging.",        "debug."};

bool is_free(const std::string& difference) {  // "key: now (was before)"
  const std::string key = difference.substr(0, difference.find(':'));
  return std::any_of(free_keys.begin(), free_keys.end(), [&](const char* known) {
    return known[std::strlen(known) - 1] == '.' ? key.starts_with(known) : key == known;
  });
}

const char* name_of_state(RunState state) {
  static constexpr const char* names[] = {"waiting", "running", "done", "failed", "diverged", "stopped"};
  return names[static_cast<size_t>(state)];
}

// The last line that is a row; what is behind it may be half written.
nlohmann::json last_row(const fs::path& path) {
  if (!fs::exists(path)) return {};
  io::LinesFromEnd lines(path);
  while (const std::optional<io::Line> line = lines.next()) {
    nlohmann::json row = nlohmann::json::parse(line->text, nullptr, /*allow_exceptions=*/false);
    if (row.is_object() && row.contains("step") && row["step"].is_number_integer()) return row;
  }
  return {};
}

double number(const nlohmann::json& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && found->is_number() ? found->get<double>() : 0;
}

}  // namespace

fs::path config_file(const SweepPlan& plan, const PlannedRun& run) {
  return plan.folder / "configs" / (run.id.name + ".yaml");
}

fs::path log_file(const SweepPlan& plan, const PlannedRun& run) {
  return plan.folder / "logs" / (run.id.name + ".log");
}

RunStatus read_status(const PlannedRun& run) {
  const RunFolder files{run.config.run.output_dir};
  RunStatus status;
  const RunProgress progress = read_progress(files.root);
  const nlohmann::json row = last_row(files.metrics());
  status.step = progress.step;
  if (row.is_object()) {
    status.step = std::max(status.step, row["step"].get<int64_t>());
    status.loss = number(row, "loss");
    status.validation_loss = number(row, "validation_loss");
    status.tokens_per_second = number(row, "tokens_per_second");
  }
  const bool is_validated = run.config.data.validation.path.empty() || status.validation_loss > 0;
  // A last row counts with its checkpoint: without that, the run is to be gone on with.
  const nlohmann::json end = progress.is_done() ? row : nlohmann::json();
  if (const std::optional<Divergence> divergence = find_divergence(files, end, run.config.train.num_steps)) {
    status.state = RunState::diverged;
    status.reason = divergence->reason;
  } else if (progress.is_done() && progress.step >= run.config.train.num_steps && is_validated) {
    status.state = RunState::done;
  } else if (io::FolderLock::holder(files.root)) {
    status.state = RunState::running;
  }
  return status;
}

void check_same_run(const PlannedRun& run) {
  const RunFolder files{run.config.run.output_dir};
  if (!fs::exists(files.config())) return;
  Config planned = run.config;
  const std::string name = files.config().string(), stored = io::read_file(files.config());
  // The tokenizer's vocabulary, which the run has looked up.
  if (planned.model.vocab_size == 0) planned.model.vocab_size = parse_config(stored, name).model.vocab_size;
  for (const std::string& difference : check_same_experiment(stored, name, planned))
    if (!is_free(difference))
      throw Error("{}: {}; expected no difference: choose another output_dir, or remove the folder of this run", name,
                  difference);
}

fs::path state_file(const fs::path& sweep_folder) {
  return sweep_folder / "state.json";
}

std::map<std::string, std::string> read_stopped(const fs::path& sweep_folder) {
  std::map<std::string, std::string> stopped;
  if (!fs::exists(state_file(sweep_folder))) return stopped;
  const auto state =
      nlohmann::json::parse(io::read_file(state_file(sweep_folder)), nullptr, /*allow_exceptions=*/false);
  if (!state.is_object() || !state.contains("runs") || !state["runs"].is_object()) return stopped;
  for (const auto& [name, run] : state["runs"].items())
    if (run.is_object() && run.value("state", "") == "stopped") stopped[name] = run.value("reason", "");
  return stopped;
}

std::string failure_reason(const fs::path& log, int wait_status) {
  std::ifstream file(log);
  std::string reason;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("--- started")) reason.clear();
    const size_t error = line.find("error: ");
    if (error != std::string::npos) reason = line.substr(error + std::strlen("error: "));
  }
  if (!reason.empty()) return reason;
  if (WIFSIGNALED(wait_status)) return fmt::format("killed by signal {}", WTERMSIG(wait_status));
  return fmt::format("exit status {}", WEXITSTATUS(wait_status));
}

std::string status_line(const PlannedRun& run, const RunStatus& status, size_t name_width) {
  std::string line = fmt::format("{:<{}}  {:<8}  {:>6}/{:<6}", run.id.name, name_width, name_of_state(status.state),
                                 status.step, run.config.train.num_steps);
  line += status.loss > 0 ? fmt::format("  loss {:.4f}", status.loss) : "";
  if (status.validation_loss > 0) line += fmt::format("  validation {:.4f}", status.validation_loss);
  if (status.state == RunState::running && status.tokens_per_second > 0) {
    const auto left =
        static_cast<double>(BatchPlan(run.config).num_tokens(status.step + 1, run.config.train.num_steps));
    line += fmt::format("  {:.0f} tokens/s  {:.0f} s left", status.tokens_per_second, left / status.tokens_per_second);
  }
  if (!status.reason.empty()) line += "  " + status.reason;
  return line;
}

std::string status_sums(const std::vector<RunStatus>& status) {
  std::array<int, 6> counts{};
  for (const RunStatus& one : status) ++counts[static_cast<size_t>(one.state)];
  std::string sums = fmt::format("{} run{}: {} done, {} running, {} waiting, {} failed", status.size(),
                                 status.size() == 1 ? "" : "s", counts[2], counts[1], counts[0], counts[3]);
  if (counts[4] > 0) sums += fmt::format(", {} diverged", counts[4]);
  if (counts[5] > 0) sums += fmt::format(", {} stopped early", counts[5]);
  return sums;
}

std::string status_table(const SweepPlan& plan, const std::vector<RunStatus>& status) {
  size_t width = 0;
  for (const PlannedRun& run : plan.runs) width = std::max(width, run.id.name.size());
  std::string table;
  for (size_t i = 0; i < plan.runs.size(); ++i) table += status_line(plan.runs[i], status[i], width) + "\n";
  return table + status_sums(status) + "\n";
}

}  // namespace lamina::study
