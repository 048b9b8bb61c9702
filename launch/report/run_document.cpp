#include "launch/report/run_document.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "configs/schema/decode.h"
#include "launch/report/layer_document.h"
#include "launch/report/metrics_digest.h"
#include "launch/report/series.h"
#include "launch/report/trace_document.h"
#include "model/cost_model.h"
#include "trainer/record/run_folder.h"
#include "trainer/record/spike_log.h"

namespace lamina::report {
namespace {

using nlohmann::json;
using study::RunData;

const std::vector<std::string> metrics_drawn = {"loss",
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
constexpr size_t max_spikes = 1000;  // of a page

int64_t num_ranks(const json& peaks) {
  size_t count = 0;
  if (peaks.is_object())
    for (const auto& [purpose, bytes] : peaks.items())
      if (bytes.is_array()) count = std::max(count, bytes.size());
  return static_cast<int64_t>(count);
}

// Of the steps' own time; null where no row has it.
json ratio(double sum, double time) {
  return time > 0 ? json(sum / time) : json();
}

// The newest ones.
json spikes_document(const RunData& run, json& left_out) {
  std::vector<Spike> spikes = read_spikes(RunFolder{run.folder}.spikes());
  left_out = spikes.size() > max_spikes ? spikes.size() - max_spikes : 0;
  json out = json::array();
  for (size_t i = left_out.get<size_t>(); i < spikes.size(); ++i)
    out.push_back({{"step", spikes[i].step},
                   {"batch", spikes[i].batch},
                   {"action", name_of(spikes[i].action)},
                   {"passed", to_text(spikes[i].passed)},
                   {"reason", spikes[i].reason}});
  return out;
}

// Where each stage begins but the run's first one.
json stages_document(const RunData& run, const MetricsDigest& digest) {
  const BatchPlan plan(run.config);
  json begins = json::array();
  for (const StageBegin& begin : digest.stages)
    if (begin.stage <= std::ssize(plan.stages()))
      begins.push_back({{"step", begin.step},
                        {"tokens", begin.tokens},
                        {"name", fmt::format("stage {}: {}", begin.stage,
                                             to_text(plan.stages()[static_cast<size_t>(begin.stage - 1)]))}});
  return begins;
}

json summary(const RunData& run, const MetricsDigest& digest, const std::map<std::string, std::string>& keys) {
  const Config& config = run.config;
  const int64_t ranks = num_ranks(digest.peak_bytes);
  json out = {
      {"state", state_text(run)},
      {"step", run.last_row["step"]},
      {"num_steps", config.train.num_steps},
      {"layers", config.model.num_hidden_layers},
      {"hidden_size", config.model.hidden_size},
      {"residual", keys.at("model.residual")},
      {"num_experts", config.model.num_experts},
      {"parameters", model::model_parameters(config.model).total()},
      {"active_parameters", model::active_parameters(config.model)},
      {"flops", study::training_flops(run)},
      {"stages", stages_document(run, digest)},
      {"seq_len", config.data.seq_len},
      {"global_batch_size", BatchPlan(config).stages().front().global_batch_size},
      {"micro_batch_size", config.train.micro_batch_size},
      {"tokens", run.last_row["tokens"]},
      {"planned_tokens", BatchPlan(config).num_tokens(1, config.train.num_steps)},
      {"precision", keys.at("train.precision")},
      {"optimizer", keys.at("train.optimizer.name")},
      {"device", config.run.device},
      {"seed", config.run.seed},
      {"seconds_in_steps", digest.seconds_in_steps},
      {"mean_tokens_per_second", ratio(digest.tokens_in_steps, digest.seconds_in_steps)},
      {"mean_mfu", ratio(digest.mfu_seconds, digest.mfu_time)},
      {"pipeline", config.parallel.pipeline},
      {"virtual_stages", config.parallel.virtual_stages},
      {"schedule", name_of(config.parallel.schedule)},
      {"expert", config.parallel.expert},
      {"peak_bytes", digest.peak_bytes},
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
  const int64_t step = run.last_row["step"].get<int64_t>();
  if (step >= run.config.train.num_steps) return "done";
  return fmt::format("at step {} of {}", step, run.config.train.num_steps);
}

json run_document(const RunData& run, const Limits& limits) {
  const MetricsDigest digest = digest_metrics(run, metrics_drawn, /*with_tasks=*/true, limits.points);
  const std::string yaml = to_yaml(run.config);
  const double time_zero = digest.first_time();
  json series = json::object(), spikes_left_out;
  for (const auto& [key, thinner] : digest.series) series[key] = to_json(thinner.series(), time_zero);
  json spikes = spikes_document(run, spikes_left_out);
  return {{"name", run.name},
          {"folder", run.folder.string()},
          {"summary", summary(run, digest, flatten_config(yaml))},
          {"time_zero", time_zero},
          {"starts", to_json(digest.starts, time_zero)},
          {"spikes", std::move(spikes)},
          {"spikes_left_out", spikes_left_out},
          {"series", std::move(series)},
          {"layers", layer_document(run, limits)},
          {"trace", trace_document(run, limits)},
          {"config", yaml}};
}

}  // namespace lamina::report
