#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "core/base/error.h"
#include "core/base/stop.h"
#include "data/sampler.h"
#include "launch/commands.h"
#include "launch/study/sweep_runner.h"
#include "model/cost_model.h"
#include "model/parameters.h"

namespace lamina {
namespace {

struct SweepArguments {
  std::string file;
  study::SweepOptions sweep;
  std::string slurm_options;
  bool dry_run = false, status = false;
};

// What every run is and costs, before anything is started.
void print_plan(const study::SweepPlan& plan) {
  double total = 0;
  for (const study::PlannedRun& run : plan.runs) {
    const Config& config = run.config;
    Config resolved = config;
    if (resolved.model.vocab_size == 0) resolved.model.vocab_size = data_vocab_size(config.data);
    const auto tokens = static_cast<double>(BatchPlan(config).num_tokens(1, config.train.num_steps));
    const double flops = model::training_flops(resolved, config.train.num_steps);
    total += flops;
    fmt::print("{}  {} parameters, {} steps, {:.3g} tokens, lr {}, {:.3g} FLOP\n", run.id.name,
               model::num_parameters(resolved.model), config.train.num_steps, tokens, config.train.optimizer.lr, flops);
  }
  fmt::print("{} runs, {} rank{} each, {:.3g} FLOP, in {}\n", plan.runs.size(), plan.ranks, plan.ranks == 1 ? "" : "s",
             total, plan.folder.string());
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  for (size_t at = 0; (at = text.find_first_not_of(' ', at)) != std::string::npos;) {
    const size_t end = std::min(text.find(' ', at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

void sweep(SweepArguments& options) {
  const study::SweepPlan plan = study::load_sweep(options.file);
  if (options.status) {
    fmt::print("{}", study::status_table(plan, study::sweep_status(plan)));
    return;
  }
  study::check_sweep(plan);
  if (options.dry_run) {
    print_plan(plan);
    return;
  }
  options.sweep.program = std::filesystem::read_symlink("/proc/self/exe").string();
  options.sweep.show_table = ::isatty(STDOUT_FILENO) == 1;
  options.sweep.slurm_options = words_of(options.slurm_options);
  if (!options.sweep.slurm_script.empty()) {
    const int submitted = study::submit_sweep(plan, options.sweep);
    fmt::print("{}submitted {} run{}\n", study::status_table(plan, study::sweep_status(plan)), submitted,
               submitted == 1 ? "" : "s");
    return;
  }
  stop::catch_signals(/*interrupt_too=*/true);
  const study::SweepEnd end = study::run_sweep(plan, options.sweep);
  if (end.is_stopped) throw Stopped(stop::reason());
  if (end.failed > 0)
    throw Error("{} of {} runs failed; the others {}, and the same command tries the failed ones again", end.failed,
                plan.runs.size(),
                end.diverged > 0 ? fmt::format("have ended ({} diverged)", end.diverged) : "are done");
  if (end.diverged > 0)
    fmt::print("{} of {} runs diverged: they have ended, and a fit leaves them out (--status names them)\n",
               end.diverged, plan.runs.size());
}

}  // namespace

void register_sweep(CLI::App& app) {
  auto options = std::make_shared<SweepArguments>();
  CLI::App* command = app.add_subcommand("sweep", "Train the runs of a study: sizes x variants x seeds");
  command->footer(
      "Examples:\n"
      "  lamina sweep configs/sweeps/cpu_attnres.yaml --dry-run      what would run, and what it costs\n"
      "  lamina sweep configs/sweeps/cpu_attnres.yaml --jobs 2       two runs at a time on this machine\n"
      "  lamina sweep study.yaml --slurm launch/slurm.sbatch --slurm-options '--partition=gpu --time=12:00:00'\n"
      "  lamina sweep study.yaml --status\n"
      "Runs that are done, or have diverged, are skipped, others go on from their checkpoints; a run whose folder "
      "holds another "
      "configuration is\n"
      "refused. Interrupt it (Ctrl-C, SIGTERM) as you like: the runs save, and the same command goes on.");
  command->add_option("sweep", options->file, "Sweep file (docs/guide.md, \"A study\")")->required();
  command->add_option("--jobs", options->sweep.jobs, "Runs at a time on this machine")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  options->sweep.launcher = "mpirun --bind-to none";
  command->add_option("--launcher", options->sweep.launcher, "Starts runs of several ranks, with -n RANKS behind it")
      ->capture_default_str();
  CLI::Option* slurm =
      command->add_option("--slurm", options->sweep.slurm_script, "Submit the runs with this batch script, a job each")
          ->check(CLI::ExistingFile);
  command->add_option("--slurm-options", options->slurm_options, "Further options of sbatch, separated by blanks")
      ->needs(slurm);
  CLI::Option* dry_run =
      command->add_flag("--dry-run", options->dry_run, "Show the runs and what they cost, and start nothing");
  command->add_flag("--status", options->status, "Show where the runs stand, and start nothing")->excludes(dry_run);
  command->callback([options] { sweep(*options); });
}

}  // namespace lamina
