#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "configs/schema/decode.h"
#include "core/base/error.h"
#include "core/device/cuda_device.h"
#include "core/io/file.h"
#include "data/sampler.h"
#include "evaluation/tasks.h"
#include "launch/commands.h"
#include "launch/machine.h"
#include "launch/process.h"
#include "model/cost_model.h"
#include "model/parameters.h"
#include "model/plan.h"
#include "model/update_rules.h"
#include "parallel/comm/thread.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/record/identity.h"
#include "trainer/record/run_folder.h"
#include "trainer/step/restore.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;

struct CheckOptions {
  std::string config;
  std::vector<std::string> overrides;
  int ranks = 0;  // 0: as many as the launcher started, or one
  bool run_folder = false;
};

// How the run folder stands; refuses one that holds another experiment.
std::string run_folder_state(const Config& config) {
  check_can_write("run.output_dir", config.run.output_dir);
  if (config.debug.dump_step > 0) check_can_write("debug.dump_path", fs::path(config.debug.dump_path).parent_path());
  const RunFolder folder{config.run.output_dir};
  if (!fs::exists(folder.config())) return "new";
  const std::string stored = io::read_file(folder.config());
  std::string text = "exists, the run goes on";
  for (const std::string& difference :
       check_same_experiment(stored, folder.config().string(), config, last_batch(folder)))
    text += "\n               with " + difference;
  return text;
}

std::string residual_text(const ModelConfig& model) {
  switch (model.residual) {
    case Residual::standard:
      return "standard residual";
    case Residual::full_attnres:
      return "full Attention Residuals";
    case Residual::mhc:
      return fmt::format("manifold-constrained hyper-connections (mHC), {} streams", model.num_residual_streams);
    case Residual::block_attnres:
      return fmt::format("Attention Residuals over blocks of {} layer{}", model.attn_res_block_size,
                         model.attn_res_block_size == 1 ? "" : "s");
  }
  return "?";
}

// How parameters come into a run that has no checkpoint of its own; refuses a checkpoint that it can't start from.
std::string check_parameters(const Config& config, const Sampler& sampler) {
  const std::string& init_from = config.checkpoint.init_from;
  if (init_from.empty() || !list_committed_checkpoints(RunFolder{config.run.output_dir}.checkpoints()).empty())
    return "";
  const auto self = comm::make_self_communicator();
  const fs::path checkpoint = resolve_checkpoint(init_from, *self);
  const size_t num_new = check_start(checkpoint, config, sampler);
  return checkpoint.string() + (num_new == 0 ? "" : "; new: " + describe_new(num_new));
}

// Of one rank, beside what is here; the run may be meant for other machines.
std::string memory_text(const Config& config, int ranks) {
  model::PlanInputs inputs;
  inputs.config = config;
  inputs.num_ranks = ranks;
  const double needed = make_plan(inputs).peak_bytes();
  constexpr double gib = 1 << 30;
  if (config.run.device != "cpu") return fmt::format("{:.1f} GiB on the fullest rank (lamina plan)", needed / gib);
  const double here = meminfo("MemTotal").value_or(0) / gib, all = needed * ranks / gib;
  return fmt::format("{:.1f} GiB on the fullest rank (lamina plan){}", needed / gib,
                     all > here ? fmt::format("; NOT ENOUGH here: this machine has {:.1f} GiB for {} rank{}", here,
                                              ranks, ranks == 1 ? "" : "s")
                                : "");
}

const char* plural(int64_t count) {
  return count == 1 ? "" : "s";
}

// A long ramp is cut in the middle.
void print_stages(const BatchPlan& plan, int64_t num_steps) {
  constexpr size_t most = 20;
  const std::vector<BatchStage>& stages = plan.stages();
  if (stages.size() == 1) return;
  fmt::print("{:<14} {:<13} {:>7} {:>6} {:>8} {:>14} {:>10}  weights\n", "stages", "steps", "batch", "micro", "seq_len",
             "tokens", "lr factor");
  for (size_t i = 0; i < stages.size(); ++i) {
    if (stages.size() > most && i == most / 2) {
      i = stages.size() - most / 2;
      fmt::print("{:<14} ... {} more\n", "", i - most / 2);
    }
    const BatchStage& stage = stages[i];
    const int64_t last = i + 1 < stages.size() ? std::min(stages[i + 1].first - 1, num_steps) : num_steps;
    fmt::print("{:<14} {:<13} {:>7} {:>6} {:>8} {:>14} {:>10}  {}{}\n", "", steps_text(plan, i, num_steps),
               stage.global_batch_size, stage.micro_batch_size, stage.seq_len, plan.num_tokens(stage.first, last),
               stage.lr_factor, fmt::join(stage.weights, ", "),
               stage.begins_epoch ? "; every source begins an epoch (data.piece_len)" : "");
  }
}

// N. Muennighoff et al., Scaling Data-Constrained Language Models, arXiv 2305.16264: up to four epochs are nearly as good as new text.
constexpr double many_epochs = 4;

void check(const CheckOptions& options) {
  Config config = load_config(options.config, options.overrides);
  const int ranks = options.ranks > 0 ? options.ranks : launcher_ranks().size;
  const TrainConfig& train = config.train;
  const int data_size = resolve_data_parallel(config, ranks);
  if (config.model.vocab_size == 0) config.model.vocab_size = data_vocab_size(config.data);
  const Sampler sampler(config);
  const std::vector<evaluation::Task> tasks =
      evaluation::load_tasks(config.train.eval.tasks, sampler.tokenizer(), config.data.seq_len);
  const std::string folder = run_folder_state(config), parameters = check_parameters(config, sampler);
  const std::vector<std::string> updates = model::describe_update_rules(config);
  if (options.run_folder) {
    fmt::print("{}\n", fs::absolute(config.run.output_dir).lexically_normal().string());
    return;
  }

  const BatchStage& first = sampler.plan().stages().front();
  const int64_t num_microbatches = first.global_batch_size / (first.micro_batch_size * data_size);
  fmt::print("configuration  {}: right for {} rank{}\n", options.config, ranks, plural(ranks));
  fmt::print("model          {} parameters, {} layer{}, vocabulary {}, {}\n", model::num_parameters(config.model),
             config.model.num_hidden_layers, plural(config.model.num_hidden_layers), config.model.vocab_size,
             residual_text(config.model));
  if (config.parallel.pipeline * config.parallel.virtual_stages > 1)
    fmt::print("pipeline       {} rank{} x {} chunk{}, layers per chunk {}\n", config.parallel.pipeline,
               plural(config.parallel.pipeline), config.parallel.virtual_stages, plural(config.parallel.virtual_stages),
               fmt::join(model::resolve_split(config), " "));
  fmt::print("batch          {} sequences = {} per micro-batch x {} {}rank{} x {} micro-batch{}\n",
             first.global_batch_size, first.micro_batch_size, data_size,
             config.parallel.pipeline > 1 ? "data-parallel " : "", plural(data_size), num_microbatches,
             num_microbatches == 1 ? "" : "es");
  print_stages(sampler.plan(), train.num_steps);
  for (size_t i = 0; i < updates.size(); ++i) fmt::print("{:<14} {}\n", i == 0 ? "updates" : "", updates[i]);
  for (const std::string& note : config.notes) fmt::print("note           {}\n", note);
  fmt::print("memory         {}\n", memory_text(config, ranks));
  if (const int64_t tokens = sampler.plan().num_tokens(1, train.num_steps); sampler.plan().stages().size() > 1)
    fmt::print("tokens         {} in {} steps\n", tokens, train.num_steps);
  else
    fmt::print("tokens         {} per step x {} steps = {}\n", first.tokens_per_batch(), train.num_steps, tokens);
  const std::vector<double> epochs = sampler.epochs(train.num_steps);
  for (size_t i = 0; i < epochs.size(); ++i)
    fmt::print("{:<14} {:.2f} epochs of {}{}\n", i == 0 ? "data" : "", epochs[i], config.data.train[i].path,
               epochs[i] > many_epochs ? "; MANY: after about four, repeated text teaches less and less" : "");
  if (const ValidationConfig& validation = config.data.validation; validation.path.empty()) {
    fmt::print("validation     none\n");
  } else {
    fmt::print("validation     {} sequences of {}, {}\n", validation.num_sequences, validation.path,
               validation.interval == 0 ? "at the end" : fmt::format("every {} steps", validation.interval));
  }
  for (size_t i = 0; i < tasks.size(); ++i)
    fmt::print("{:<14} {}\n", i == 0 ? "tasks" : "", evaluation::describe(tasks[i], config.data.seq_len));
  if (!parameters.empty()) fmt::print("parameters     from {}\n", parameters);
  fmt::print("run folder     {} ({})\n", config.run.output_dir, folder);
  if (config.run.device == "cuda") {
    // The run may be meant for another machine than the one that checks.
    if (const std::string reason = cuda::why_none(); !reason.empty()) {
      fmt::print("device         cuda, which this machine can't run: {}\n", reason);
    } else {
      fmt::print("device         {} of this machine: {}\n", cuda::num_devices() == 1 ? "the GPU" : "the GPUs",
                 cuda::device_info(0).name);
    }
  }
}

}  // namespace

void register_check(CLI::App& app) {
  auto options = std::make_shared<CheckOptions>();
  CLI::App* command =
      app.add_subcommand("check", "Tell everything that can be wrong with a configuration, without running");
  command->footer("Example:\n  lamina check configs/tiny.yaml --ranks 4 train.global_batch_size=64");
  command->add_option("config", options->config, "Experiment file (docs/configuration.md)")->required();
  command->add_option("overrides", options->overrides, "key.path=value, each replaces one key");
  command->add_option("--ranks", options->ranks, "Ranks that the run will have; 1 when not given")
      ->check(CLI::Range(1, 1 << 20).description("N"));
  command->add_flag("--run-folder", options->run_folder,
                    "For scripts: when nothing is wrong, print the run folder's absolute path and nothing else");
  command->callback([options] { check(*options); });
}

}  // namespace lamina
