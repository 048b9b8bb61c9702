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
  bool schedules = false, operations = false;
  std::string device;  // a file; empty: the default, or this machine's processor
  // What the user says of a device replaces what is known of it.
  std::optional<double> tflops, memory_gib, memory_gbps, bandwidth_gbps, node_gbps;
  std::optional<int> ranks_per_node;
};

// Of a device file, for a configuration that such a device can run and whose products it tells the rate of.
model::PlanDevice gpu_of(const std::string& file, const Config& config) {
  const model::PlanDevice device = model::plan_device(load_device(file));
  if (config.model.residual == Residual::mhc)
    throw Error(
        "model.residual: found mhc with --device {}, expected standard, full_attnres or block_attnres; mhc runs on the "
        "CPU only",
        file);
  if (config.train.precision != Precision::bf16)
    throw Error("train.precision: found {} with --device {}, expected bf16, of which the file has the rate",
                name_of(compute_dtype(config.train.precision)), file);
  return device;
}

model::PlanDevice device_of(const PlanOptions& options, const Config& config, int num_ranks) {
  model::PlanDevice device;
  const bool is_told = options.device.empty() && options.tflops && options.memory_gib && options.memory_gbps &&
                       options.bandwidth_gbps && options.node_gbps;
  if (!options.device.empty())
    device = gpu_of(options.device, config);
  else if (config.run.device == "cpu" && !is_told)
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

  if (options.operations) {
    fmt::print("{}", operations_to_text(inputs));
    return;
  }
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
      "  lamina plan configs/kimi_linear_48b.yaml --ranks 8 parallel.expert=2 --device configs/devices/h200.yaml\n"
      "  lamina plan configs/kimi_linear_48b.yaml --ranks 64 parallel.expert=8 --device configs/devices/h200.yaml "
      "--operations\n"
      "Nothing is trained and no data is read, unless model.vocab_size is the tokenizer's. Without --device it is an "
      "H100 SXM,\n"
      "in brackets below; with run.device: cpu this machine's processor, measured in about a second and shared out "
      "among\n"
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
  CLI::Option* device = command->add_option(
      "--device", options->device, "File of a device's rates and of what is attainable of them (configs/devices)");
  command
      ->add_flag(
          "--operations", options->operations,
          "Only a table of every operation of a step on the device: what it computes and moves, how long that is "
          "predicted to take and what bounds it")
      ->needs(device)
      ->excludes("--schedules");
  add_device_options(*command, *options);
  command->callback([options] { plan(*options); });
}

}  // namespace lamina
