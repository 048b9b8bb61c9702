#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "data/sampler.h"
#include "launch/commands.h"
#include "launch/process.h"
#include "model/plan.h"

namespace lamina {
namespace {

struct PlanOptions {
  std::string config;
  std::vector<std::string> overrides;
  int ranks = 0;  // 0: as many as the launcher started, or one
  int layouts = 8;
  bool schedules = false;
  model::PlanDevice device;
};

void plan(const PlanOptions& options) {
  model::PlanInputs inputs;
  inputs.config = load_config(options.config, options.overrides);
  inputs.num_ranks = options.ranks > 0 ? options.ranks : launcher_ranks().size;
  inputs.device = options.device;
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

void add_device_options(CLI::App& command, model::PlanDevice& device) {
  const auto add = [&](const char* name, double& value, const char* meaning) {
    command.add_option(name, value, meaning)->capture_default_str()->check(CLI::PositiveNumber.description("X"));
  };
  add("--device-tflops", device.tflops, "Rate of matrix products of one rank's device, 10^12 per second");
  add("--memory-gib", device.memory_gib, "Memory that the run may use on one rank");
  add("--memory-bandwidth", device.memory_gbps, "Of that memory, GB/s");
  add("--bandwidth", device.bandwidth_gbps, "What one rank sends to other nodes, GB/s");
  add("--node-bandwidth", device.node_gbps, "What one rank sends inside its node, GB/s");
  command.add_option("--ranks-per-node", device.ranks_per_node, "Ranks of one node")
      ->capture_default_str()
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
      "Nothing runs and no data is read, unless model.vocab_size is the tokenizer's. docs/guide.md explains each "
      "line.");
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
  add_device_options(*command, options->device);
  command->callback([options] { plan(*options); });
}

}  // namespace lamina
