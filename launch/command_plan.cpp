#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "data/sampler.h"
#include "launch/commands.h"
#include "launch/machine.h"
#include "launch/process.h"
#include "model/plan.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

struct PlanOptions {
  std::string config;
  std::vector<std::string> overrides;
  int ranks = 0;  // 0: as many as the launcher started, or one
  int layouts = 8;
  bool schedules = false;
  // What the user says of a device replaces what is known of it.
  std::optional<double> tflops, memory_gib, memory_gbps, bandwidth_gbps, node_gbps;
  std::optional<int> ranks_per_node;
};

model::PlanDevice device_of(const PlanOptions& options, const Config& config, int num_ranks) {
  model::PlanDevice device;
  const bool is_told =
      options.tflops && options.memory_gib && options.memory_gbps && options.bandwidth_gbps && options.node_gbps;
  if (config.run.device == "cpu" && !is_told)
    device = measure_processor(compute_dtype(config.train.precision), num_ranks);
  const model::PlanDevice known = device;
  device.tflops = options.tflops.value_or(device.tflops);
  device.memory_gib = options.memory_gib.value_or(device.memory_gib);
  device.memory_gbps = options.memory_gbps.value_or(device.memory_gbps);
  device.bandwidth_gbps = options.bandwidth_gbps.value_or(device.bandwidth_gbps);
  device.node_gbps = options.node_gbps.value_or(device.node_gbps);
  device.ranks_per_node = options.ranks_per_node.value_or(device.ranks_per_node);
  if (is_told) {
    device.name = "as told";
  } else if (device != known) {
    device.name += ", and as told";
  }
  return device;
}

void plan(const PlanOptions& options) {
  model::PlanInputs inputs;
  inputs.config = load_config(options.config, options.overrides);
  inputs.num_ranks = options.ranks > 0 ? options.ranks : launcher_ranks().size;
  inputs.device = device_of(options, inputs.config, inputs.num_ranks);
  if (inputs.config.model.vocab_size == 0) inputs.config.model.vocab_size = data_vocab_size(inputs.config.data);

  if (options.schedules) {
    fmt::print("{}", schedules_to_text(compare_schedules(inputs)));
    return;
  }
  std::string refusal;
  try {
    fmt::print("{}", to_text(make_plan(inputs), inputs));
  } catch (const Error& failure) {  // the layouts that are possible are worth knowing all the same
    refusal = failure.what();
  }
  if (options.layouts > 0)
    fmt::print("{}{}", refusal.empty() ? "\n" : "",
               to_text(search_layouts(inputs), inputs, static_cast<size_t>(options.layouts)));
  if (!refusal.empty()) throw Error(refusal);
}

void add_device_options(CLI::App& command, PlanOptions& options) {
  const model::PlanDevice device;
  const auto add = [&](const char* name, std::optional<double>& value, double known, const char* meaning) {
    command.add_option(name, value, fmt::format("{} [{}]", meaning, known))
        ->check(CLI::PositiveNumber.description("X"));
  };
  add("--device-tflops", options.tflops, device.tflops,
      "Rate of matrix products of one rank's device, 10^12 per second");
  add("--memory-gib", options.memory_gib, device.memory_gib, "Memory that the run may use on one rank");
  add("--memory-bandwidth", options.memory_gbps, device.memory_gbps, "Of that memory, GB/s");
  add("--bandwidth", options.bandwidth_gbps, device.bandwidth_gbps, "What one rank sends to other nodes, GB/s");
  add("--node-bandwidth", options.node_gbps, device.node_gbps, "What one rank sends inside its node, GB/s");
  command
      .add_option("--ranks-per-node", options.ranks_per_node,
                  fmt::format("Ranks of one node [{}]", device.ranks_per_node))
      ->check(CLI::Range(1, 1 << 20).description("N"));
}

}  // namespace

void register_plan(CLI::App& app) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = app.add_subcommand(
      "plan", "Tell what a layout needs and takes, per rank: memory, messages, bubble, time; and which layouts fit");
  command->footer(
      "Examples:\n"
      "  lamina plan configs/kimi_linear_48b.yaml --ranks 64 parallel.expert=8\n"
      "  lamina plan configs/kimi_linear_48b.yaml --ranks 8 --memory-gib 139 --memory-bandwidth 4800   # H200\n"
      "Nothing is trained and no data is read, unless model.vocab_size is the tokenizer's. The device is an H100 SXM, "
      "in\n"
      "brackets below; with run.device: cpu this machine's processor, measured in about a second and shared out among\n"
      "the ranks. docs/guide.md explains each line.");
  command->add_option("config", options->config, "Experiment file (docs/configuration.md)")->required();
  command->add_option("overrides", options->overrides, "key.path=value, each replaces one key");
  command->add_option("--ranks", options->ranks, "Ranks that the run will have; 1 when not given")
      ->check(CLI::Range(1, 1 << 20).description("N"));
  command->add_option("--layouts", options->layouts, "Other layouts to show; 0: none")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000).description("N"));
  command->add_flag(
      "--schedules", options->schedules,
      "Only a table of this layout with every schedule and both transports of blocks; bytes per step of one "
      "replica");
  add_device_options(*command, *options);
  command->callback([options] { plan(*options); });
}

}  // namespace lamina
