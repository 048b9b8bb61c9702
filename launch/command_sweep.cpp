#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/batch_plan.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/stop.h"
#include "data/sampler.h"
#include "launch/commands.h"
#include "launch/machine.h"
#include "launch/study/sweep_estimate.h"
#include "launch/study/sweep_runner.h"
#include "model/parameters.h"
#include "trainer/step/engine.h"

namespace lamina {
namespace {

struct SweepArguments {
  std::string file;
  study::SweepOptions sweep;
  std::string slurm_options;
  bool dry_run = false, status = false;
};

// Before anything is measured here: what `lamina plan` counts, of all runs and all rungs alike.
std::string counted_time(const study::SweepPlan& plan, double flops, int jobs) {
  const Config& first = plan.runs.front().config;
  if (first.run.device != "cpu") return "the time is known when the first run has ended";
  const model::PlanDevice machine = measure_processor(compute_dtype(first.train.precision), /*num_ranks=*/1);
  double seconds = 0, planned = 0;
  for (const study::PlannedRun& run : plan.runs) {
    seconds += study::planned_seconds(run.config, plan.ranks, jobs, machine);
    planned += study::run_flops(run.config);
  }
  return fmt::format("more than {} with --jobs {}, by the rates that large products reach here now",
                     study::duration_text(seconds / planned * flops / jobs), jobs);
}

// What every run is and costs, and how long all of them take, before anything is started.
void print_plan(const study::SweepPlan& plan, const std::vector<study::CellTuning>& tuning, int jobs) {
  double total = 0;
  for (const study::PlannedRun& run : plan.runs) {
    const Config& config = run.config;
    Config resolved = config;
    if (resolved.model.vocab_size == 0) resolved.model.vocab_size = data_vocab_size(config.data);
    const auto tokens = static_cast<double>(BatchPlan(config).num_tokens(1, config.train.num_steps));
    const double flops = study::run_flops(resolved);
    total += flops;
    fmt::print("{}  {} parameters, {} steps, {:.3g} tokens, {}, {:.3g} FLOP\n", run.id.name,
               model::num_parameters(resolved.model), config.train.num_steps, tokens,
               run.awaits_tuning ? plan.tune->key + " is tuned" : fmt::format("lr {}", config.train.optimizer.lr),
               flops);
  }
  const std::vector<study::RunStatus> status = study::sweep_status(plan);
  study::Work left = study::work_left(plan, status);
  if (plan.tune) {
    const study::Work work = study::tuning_work(plan);
    if (std::filesystem::exists(plan.folder / "tuning")) fmt::print("{}\n", study::tuning_text(plan, tuning));
    fmt::print("tuning: {} cells, {} values, {:.3g} FLOP\n", plan.tune->cells.size(), plan.tune->values.size(),
               study::sum(work));
    total += study::sum(work);
    const study::SweepPlan rung = study::next_rung(plan, tuning);
    for (const study::Work& more : {study::work_left(rung, study::sweep_status(rung)), later_tuning_work(plan, tuning)})
      for (const auto& [size, flops] : more) left[size] += flops;
  }
  fmt::print("{} runs, {} rank{} each, {:.3g} FLOP, in {}\n", plan.runs.size(), plan.ranks, plan.ranks == 1 ? "" : "s",
             total, plan.folder.string());
  study::SweepClock clock(total, jobs);
  clock.measured(plan, status);
  if (clock.has_rates() || study::sum(left) == 0)
    fmt::print("{} with --jobs {}\n", clock.text(left), jobs);
  else
    fmt::print("{}\n", counted_time(plan, study::sum(left), jobs));
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
  study::SweepPlan plan = study::load_sweep(options.file);
  std::vector<study::CellTuning> tuning;
  if (plan.tune) {
    tuning = study::read_tuning(plan);
    study::apply_tuning(plan, tuning);
  }
  if (options.status) {
    if (plan.tune) fmt::print("{}\n", study::tuning_text(plan, tuning));
    fmt::print("{}", study::status_table(plan, study::sweep_status(plan)));
    return;
  }
  study::check_sweep(plan);
  const int jobs = options.sweep.jobs, cores = static_cast<int>(study::usable_cores().size());
  if (options.sweep.bind && jobs > cores)
    throw Error("--bind: found {} runs at a time on {} cores, expected a core for each", jobs, cores);
  if (const std::string crowded = study::crowding(plan, jobs); !crowded.empty() && options.sweep.slurm_script.empty())
    log::warning("{}", crowded);
  if (options.dry_run) {
    print_plan(plan, tuning, jobs);
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
                end.runs, end.diverged > 0 ? fmt::format("have ended ({} diverged)", end.diverged) : "are done");
  if (end.stopped_early > 0)
    fmt::print("{} of {} runs were stopped early: a fit leaves them out (--status names them)\n", end.stopped_early,
               plan.runs.size());
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
  command->add_flag("--bind", options->sweep.bind,
                    "Give each run at a time cores of its own, a share of this machine's");
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
