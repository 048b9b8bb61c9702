#include <fmt/ranges.h>

#include <algorithm>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "model/optimizers/optimizer.h"
#include "model/plan.h"

namespace lamina::model {
namespace {

constexpr double gib = 1024.0 * 1024 * 1024;

// Three significant digits and a unit.
std::string bytes_text(double bytes) {
  static constexpr const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 || bytes >= 100 ? 0 : bytes >= 10 ? 1 : 2, units[unit]);
}

std::string seconds_text(double seconds) {
  if (seconds >= 1) return fmt::format("{:.2f} s", seconds);
  if (seconds >= 1e-3) return fmt::format("{:.2f} ms", seconds * 1e3);
  return fmt::format("{:.2f} us", seconds * 1e6);
}

std::string flops_text(double flops, int digits = 2) {
  static constexpr const char* units[] = {"", "K", "M", "G", "T", "P", "E", "Z"};
  size_t unit = 0;
  while (flops >= 1000 && unit + 1 < std::size(units)) {
    flops /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f} {}FLOP", flops, digits, units[unit]);
}

// F(T) = 6 N_mm + 3 (MLA + KDA), each term with its factors (cost_model.h).
std::string operations_text(const Plan& plan, const Config& config) {
  const ModelConfig& c = config.model;
  const FlopsPerToken& flops = plan.flops_per_token;
  int64_t num_kda = 0;
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) num_kda += c.mixer(layer) == Mixer::kda ? 1 : 0;
  std::string text = fmt::format("operations   F(T) = 6 N_mm + 3 ({}MLA) = {} per token at T = {}, {} per step\n",
                                 num_kda > 0 ? "KDA + " : "", flops_text(flops.total(), 3), config.data.seq_len,
                                 flops_text(plan.flops_per_step));
  text += fmt::format("  N_mm       {:.0f}: 6 N_mm = {}\n", flops.num_multiplied(), flops_text(flops.matrices, 3));
  text +=
      fmt::format("  MLA        {} layers x heads T (d_qk + d_v) = {} x {} x {} ({} + {}): x 3 = {}\n",
                  c.num_hidden_layers - num_kda, c.num_hidden_layers - num_kda, c.num_attention_heads,
                  config.data.seq_len, c.qk_nope_head_dim + c.qk_rope_head_dim, c.v_head_dim, flops_text(flops.mla, 3));
  if (num_kda > 0)
    text += fmt::format("  KDA        {} layers x heads (6 K^2 + 3 C K + C^2), C = 64: {} x {}, K = {}: x 3 = {}\n",
                        num_kda, num_kda, c.linear_num_heads, c.linear_head_dim, flops_text(flops.kda, 3));
  return text;
}

std::string optimizer_text(const Plan& plan, const Config& config) {
  const std::map<OptimizerName, OptimizerCount> counts = optimizer_counts(config);
  std::string text, products;
  for (auto it = counts.rbegin(); it != counts.rend(); ++it) {
    const auto& [name, count] = *it;
    const Optimizer::Facts& facts = optimizer_of(name).facts();
    text += fmt::format("{}{}: {}{}", text.empty() ? "optimizer    " : ", ", facts.title, count.elements,
                        text.empty() ? " elements" : "");
    if (count.flops > 0)
      products += fmt::format("; {} {} per step ({:.2f} %)", facts.products, flops_text(count.flops),
                              100 * count.flops / plan.flops_per_step);
  }
  const int64_t buffers = model_parameters(config.model).buffers;
  if (counts.size() > 1 && buffers > 0) text += fmt::format(", buffers: {}", buffers);
  return text + products + "\n";
}

std::string layers_text(const ChunkPlan& chunk, int num_chunks) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : " + ") + part; };
  if (chunk.chunk == 0) add("embedding");
  if (chunk.num_layers == 1) add(fmt::format("{}", chunk.first_layer));
  if (chunk.num_layers > 1) add(fmt::format("{}-{}", chunk.first_layer, chunk.first_layer + chunk.num_layers - 1));
  if (chunk.chunk + 1 == num_chunks) add("head");
  return text;
}

std::string summary_text(const Plan& plan, const PlanInputs& inputs) {
  const Config& config = inputs.config;
  const ParallelConfig& parallel = plan.parallel;
  const PlanDevice& device = inputs.device;
  const bool has_experts = config.model.num_experts > 0, has_blocks = config.model.has_depth_reads();
  std::string text;
  text += fmt::format("model        {} parameters in {} tensors, {} layers; active {} (input embedding not counted)\n",
                      plan.num_parameters, num_tensors(config.model), config.model.num_hidden_layers,
                      active_parameters(config.model));
  text += operations_text(plan, config) + optimizer_text(plan, config);
  text += fmt::format("ranks        {} = pipeline {} x data {}{}; virtual_stages {}, {}{}\n", plan.num_ranks,
                      parallel.pipeline, parallel.data, has_experts ? fmt::format(" (expert {})", parallel.expert) : "",
                      parallel.virtual_stages, name_of(parallel.schedule),
                      !has_blocks                                          ? ""
                      : parallel.block_transport == BlockTransport::cached ? ", blocks cached"
                                                                           : ", blocks in full");
  text +=
      fmt::format("batch        {} sequences of {} = {} per micro-batch x data {} x {} micro-batches; recompute {}\n",
                  config.train.global_batch_size, config.data.seq_len, config.train.micro_batch_size, parallel.data,
                  plan.num_microbatches, name_of(plan.recompute));
  text += fmt::format(
      "device       {}: {:.4g} TFLOP/s, {:.4g} GiB at {:.4g} GB/s; {:.4g} GB/s inside a node of {}, {:.4g} GB/s "
      "between nodes\n",
      device.name, device.tflops, device.memory_gib, device.memory_gbps, device.node_gbps, device.ranks_per_node,
      device.bandwidth_gbps);
  if (!device.basis.empty()) text += fmt::format("  of         {}\n", device.basis);
  return text;
}

std::string chunk_table(const Plan& plan) {
  const auto num_chunks = static_cast<int>(plan.parallel.split.size());
  std::string text =
      fmt::format("\n{:>4} {:>5}  {:<18} {:>14} {:>12} {:>9} {:>11} {:>11} {:>14}\n", "rank", "chunk", "layers",
                  "parameters", "activations", "in flight", "forward", "backward", "summaries sent");
  for (const RankPlan& rank : plan.ranks)
    for (const ChunkPlan& chunk : rank.chunks)
      text += fmt::format("{:>4} {:>5}  {:<18} {:>14} {:>12} {:>9} {:>11} {:>11} {:>14}\n", rank.pp_rank, chunk.chunk,
                          layers_text(chunk, num_chunks), chunk.parameters,
                          bytes_text(chunk.activation_bytes + chunk.deferred_bytes), chunk.peak_microbatches,
                          seconds_text(chunk.forward_seconds), seconds_text(chunk.backward_seconds), chunk.num_sent);
  return text;
}

std::string memory_table(const Plan& plan) {
  std::string text =
      fmt::format("\n{:>4} {:>11} {:>11} {:>11} {:>11} {:>17} {:>11} {:>11} {:>11}\n", "rank", "parameters",
                  "gradients", "optimizer", "activations", "summaries", "gradients", "workspace", "memory");
  for (const RankPlan& rank : plan.ranks) {
    const MemoryPlan& m = rank.memory;
    text += fmt::format("{:>4} {:>11} {:>11} {:>11} {:>11} {:>17} {:>11} {:>11} {:>11}\n", rank.pp_rank,
                        bytes_text(m.parameters), bytes_text(m.gradients), bytes_text(m.optimizer),
                        bytes_text(m.activations), fmt::format("{} = {}", rank.peak_summaries, bytes_text(m.summaries)),
                        bytes_text(m.summary_gradients), bytes_text(m.workspace), bytes_text(m.total()));
  }
  return text;
}

std::string traffic_table(const Plan& plan) {
  std::string text = fmt::format("\n{:>4} {:>14} {:>16} {:>16} {:>14} {:>14} {:>11}\n", "rank", "computed",
                                 "pipeline_hidden", "pipeline_blocks", "data", "expert", "busy");
  for (const RankPlan& rank : plan.ranks)
    text += fmt::format("{:>4} {:>14} {:>16} {:>16} {:>14} {:>14} {:>10.1f}%\n", rank.pp_rank, flops_text(rank.flops),
                        bytes_text(rank.pipeline_hidden_bytes), bytes_text(rank.pipeline_block_bytes),
                        bytes_text(rank.data_bytes), bytes_text(rank.expert_bytes),
                        100 * rank.busy_seconds / plan.pipeline_seconds);
  return text;
}

}  // namespace

namespace {

// What is told of one stage needs saying which.
std::string stages_text(const Plan& plan, const Config& config) {
  const BatchPlan batches(config);
  const int64_t num_steps = config.train.num_steps;
  if (batches.stages().size() == 1) return "";
  return fmt::format("stages       {}, {} in {} steps; the rest is of the one that needs most memory: steps {}\n",
                     batches.stages().size(), flops_text(training_flops(config, num_steps)), num_steps,
                     steps_text(batches, batches.stage_of(plan.batch.first), num_steps));
}

}  // namespace

std::string to_text(const Plan& plan, const PlanInputs& inputs) {
  PlanInputs stage = inputs;
  stage.config = config_of(inputs.config, plan.batch);
  std::string text = stages_text(plan, inputs.config);
  text += summary_text(plan, stage) + chunk_table(plan) + memory_table(plan) + traffic_table(plan);
  text +=
      fmt::format("\nmessages     {} of hidden stream per hop and micro-batch", bytes_text(plan.stream_message_bytes));
  if (stage.config.model.has_depth_reads())
    text += fmt::format(", {} per summary", bytes_text(plan.summary_message_bytes));
  text += fmt::format("\nbubble       {:.1f} %\n", 100 * plan.bubble);
  text += fmt::format("step         {} at least: {} pipeline, {} data; {:.0f} tokens/s, MFU at most {:.1f} %\n",
                      seconds_text(plan.step_seconds()), seconds_text(plan.pipeline_seconds),
                      seconds_text(plan.data_seconds), static_cast<double>(plan.tokens_per_step) / plan.step_seconds(),
                      100 * plan.mfu);
  const double peak = plan.peak_bytes() / gib;
  text += plan.fits(stage.device) ? fmt::format("memory       fits: {:.1f} of {:.4g} GiB on the fullest rank\n", peak,
                                                stage.device.memory_gib)
                                  : fmt::format("memory       DOES NOT FIT: {:.1f} of {:.4g} GiB on the fullest rank\n",
                                                peak, stage.device.memory_gib);
  return text;
}

std::string schedules_to_text(const std::vector<Plan>& plans) {
  std::string text = fmt::format("{:<16} {:>9} {:>9} {:>11} {:>8} {:>11} {:>16} {:>16}\n", "schedule", "blocks",
                                 "bubble", "step", "MFU", "memory", "pipeline_hidden", "pipeline_blocks");
  for (const Plan& plan : plans) {
    double hidden = 0, blocks = 0;  // of one replica
    for (const RankPlan& rank : plan.ranks) {
      hidden += rank.pipeline_hidden_bytes;
      blocks += rank.pipeline_block_bytes;
    }
    text +=
        fmt::format("{:<16} {:>9} {:>8.1f}% {:>11} {:>7.1f}% {:>11} {:>16} {:>16}\n", name_of(plan.parallel.schedule),
                    plan.parallel.block_transport == BlockTransport::cached ? "cached" : "full", 100 * plan.bubble,
                    seconds_text(plan.step_seconds()), 100 * plan.mfu, bytes_text(plan.peak_bytes()),
                    bytes_text(hidden), bytes_text(blocks));
  }
  return text;
}

std::string to_text(const std::vector<Plan>& layouts, const PlanInputs& inputs, size_t most) {
  const auto num_fit = static_cast<size_t>(
      std::count_if(layouts.begin(), layouts.end(), [&](const Plan& plan) { return plan.fits(inputs.device); }));
  const size_t shown = std::min(most, num_fit > 0 ? num_fit : layouts.size());
  std::string text =
      fmt::format("layouts      {} possible on {} ranks, {} fit", layouts.size(), inputs.num_ranks, num_fit);
  if (layouts.empty()) return text + "\n";
  text += num_fit > 0 ? "; the quickest:\n" : "; those that need least:\n";
  text +=
      fmt::format("{:>8} {:>14} {:>6} {:>6} {:>10} {:>13} {:>9} {:>8} {:>11} {:>7}  {}\n", "pipeline", "virtual_stages",
                  "data", "expert", "recompute", "micro-batches", "memory", "bubble", "step", "MFU", "split");
  for (size_t i = 0; i < shown; ++i) {
    const Plan& plan = layouts[i];
    text +=
        fmt::format("{:>8} {:>14} {:>6} {:>6} {:>10} {:>13} {:>9} {:>7.1f}% {:>11} {:>6.1f}%  [{}]\n",
                    plan.parallel.pipeline, plan.parallel.virtual_stages, plan.parallel.data, plan.parallel.expert,
                    name_of(plan.recompute), plan.num_microbatches, bytes_text(plan.peak_bytes()), 100 * plan.bubble,
                    seconds_text(plan.step_seconds()), 100 * plan.mfu, fmt::join(plan.parallel.split, ","));
  }
  return text;
}

}  // namespace lamina::model
