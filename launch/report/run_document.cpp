#include "launch/report/run_document.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "launch/report/layer_document.h"
#include "launch/report/series.h"
#include "launch/report/trace_document.h"
#include "model/cost_model.h"
#include "trainer/run_folder.h"

namespace lamina::report {
namespace {

using nlohmann::json;
using study::RunData;

constexpr std::array always_there = {"loss", "grad_norm", "lr", "tokens", "tokens_per_second"};
constexpr std::array metrics_drawn = {"loss",
                                      "validation_loss",
                                      "validation_bits_per_byte",
                                      "lr",
                                      "grad_norm",
                                      "aux_loss",
                                      "tokens_per_second",
                                      "mfu",
                                      "pipeline.bubble",
                                      "pipeline.bubble_bound",
                                      "pipeline.efficiency",
                                      "comm_bytes.pipeline_hidden",
                                      "comm_bytes.pipeline_blocks",
                                      "comm_bytes.data",
                                      "comm_bytes.expert"};

// "tasks.<name>.acc" of every task that was ever answered.
std::set<std::string> task_keys(const RunData& run) {
  std::set<std::string> keys;
  for (const json& row : run.metrics)
    if (const auto tasks = row.find("tasks"); tasks != row.end() && tasks->is_object())
      for (const auto& [name, values] : tasks->items()) keys.insert("tasks." + name + ".acc");
  return keys;
}

// The last row's that has them: they grow only. An entry per rank.
json peak_bytes(const RunData& run) {
  for (auto row = run.metrics.rbegin(); row != run.metrics.rend(); ++row)
    if (const auto found = row->find("peak_bytes"); found != row->end() && found->is_object()) return *found;
  return nullptr;
}

int64_t num_ranks(const json& peaks) {
  size_t count = 0;
  if (peaks.is_object())
    for (const auto& [purpose, bytes] : peaks.items())
      if (bytes.is_array()) count = std::max(count, bytes.size());
  return static_cast<int64_t>(count);
}

// Inside steps: without start-up, validation and checkpoints.
double seconds_in_steps(const RunData& run) {
  double seconds = 0;
  const double tokens = static_cast<double>(run.config.train.global_batch_size * run.config.data.seq_len);
  for (const json& row : run.metrics) {
    const json& rate = row["tokens_per_second"];
    if (rate.is_number() && rate.get<double>() > 0) seconds += tokens / rate.get<double>();
  }
  return seconds;
}

json summary(const RunData& run, const std::map<std::string, std::string>& keys) {
  const Config& config = run.config;
  const json peaks = peak_bytes(run);
  const int64_t ranks = num_ranks(peaks);
  json out = {
      {"state", state_text(run)},
      {"step", run.metrics.back()["step"]},
      {"num_steps", config.train.num_steps},
      {"layers", config.model.num_hidden_layers},
      {"hidden_size", config.model.hidden_size},
      {"residual", keys.at("model.residual")},
      {"num_experts", config.model.num_experts},
      {"parameters", model::model_parameters(config.model).total()},
      {"active_parameters", model::active_parameters(config.model)},
      {"flops_per_token", model::training_flops_per_token(config.model, config.data.seq_len).total()},
      {"seq_len", config.data.seq_len},
      {"global_batch_size", config.train.global_batch_size},
      {"micro_batch_size", config.train.micro_batch_size},
      {"tokens", run.metrics.back()["tokens"]},
      {"planned_tokens", config.train.num_steps * config.train.global_batch_size * config.data.seq_len},
      {"precision", keys.at("train.precision")},
      {"optimizer", keys.at("train.optimizer.name")},
      {"device", config.run.device},
      {"seed", config.run.seed},
      {"seconds_in_steps", seconds_in_steps(run)},
      {"pipeline", config.parallel.pipeline},
      {"virtual_stages", config.parallel.virtual_stages},
      {"schedule", name_of(config.parallel.schedule)},
      {"expert", config.parallel.expert},
      {"peak_bytes", peaks},
  };
  if (config.model.residual == Residual::block_attnres) out["block_size"] = config.model.attn_res_block_size;
  if (config.model.num_experts > 0) out["experts_per_token"] = config.model.num_experts_per_token;
  if (ranks > 0) {  // of the last start: a run may go on with another layout
    out["ranks"] = ranks;
    out["data"] = ranks / config.parallel.pipeline;
  }
  return out;
}

}  // namespace

Limits limits_for(size_t num_runs) {
  const size_t share = std::max<size_t>(1, (num_runs + 1) / 2);
  Limits limits;
  limits.points = std::max<size_t>(300, limits.points / share);
  limits.map_cells = std::max<size_t>(1000, limits.map_cells / num_runs);
  limits.map_values = std::max<size_t>(5000, limits.map_values / num_runs);
  return limits;
}

std::string state_text(const RunData& run) {
  if (const std::optional<Divergence> divergence = study::find_divergence(run))
    return fmt::format("diverged at step {} of {}", divergence->step, run.config.train.num_steps);
  const int64_t step = run.metrics.back()["step"].get<int64_t>();
  if (step >= run.config.train.num_steps) return "done";
  return fmt::format("at step {} of {}", step, run.config.train.num_steps);
}

void check_metrics(const RunData& run) {
  const std::string path = RunFolder{run.folder}.metrics().string();
  int64_t last_step = 0;
  for (const json& row : run.metrics) {
    const int64_t step = row["step"].get<int64_t>();
    if (step <= last_step)
      throw Error("{}: found step {} after step {}, expected steps that rise from 1", path, step, last_step);
    last_step = step;
    for (const char* key : always_there) {
      const auto found = row.find(key);
      if (found == row.end()) throw Error("{}: step {}: found no '{}', expected a number", path, step, key);
      const bool may_be_null = std::string_view(key) != "tokens";  // null: not a number, or infinite
      if (!found->is_number() && !(may_be_null && found->is_null()))
        throw Error("{}: step {}: found '{}' for '{}', expected a number", path, step, found->dump(), key);
    }
  }
}

json run_document(const RunData& run, const Limits& limits) {
  check_metrics(run);
  const std::string yaml = to_yaml(run.config);
  const auto keys = flatten_config(yaml);
  json series = json::object();
  std::set<std::string> drawn = task_keys(run);
  drawn.insert(metrics_drawn.begin(), metrics_drawn.end());
  for (const std::string& key : drawn) {
    const Series all = read_series(run.metrics, key);
    if (!all.step.empty()) series[key] = to_json(thin(all, limits.points));
  }
  json layers = layer_document(run, limits);
  return {{"name", run.name},
          {"folder", run.folder.string()},
          {"summary", summary(run, keys)},
          {"series", std::move(series)},
          {"layers", std::move(layers)},
          {"trace", trace_document(run, limits)},
          {"config", yaml}};
}

}  // namespace lamina::report
