#include <memory>
#include <string>
#include <vector>

#include "configs/schema/decode.h"
#include "core/base/here.h"
#include "core/base/stop.h"
#include "launch/commands.h"
#include "launch/doctor.h"
#include "launch/origin.h"
#include "launch/process.h"
#include "launch/rank_map.h"
#include "trainer/train.h"

namespace lamina {

void register_train(CLI::App& app) {
  struct Options {
    std::string config;
    std::vector<std::string> overrides;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("train", "Train a model; resumes by itself when the run folder has a checkpoint");
  command->footer(
      "Examples:\n"
      "  lamina train configs/tiny.yaml\n"
      "  mpirun -n 2 lamina train configs/tiny.yaml train.num_steps=100 run.output_dir=runs/try\n"
      "The run folder receives config.yaml, log.txt, metrics.jsonl, layers.jsonl, TensorBoard's event files and "
      "checkpoints/.\n"
      "SIGTERM, SIGUSR1, SIGINT (Ctrl-C) and train.max_minutes end it early: a checkpoint is saved, the exit status\n"
      "is 75, and the same command goes on from there. A second SIGINT ends it at once. Under plain mpirun Ctrl-C is\n"
      "mpirun's, which kills the ranks: send mpirun SIGUSR1 there, or use launch/mpirun.sh. A checkpoint is saved\n"
      "every checkpoint.interval steps and every checkpoint.minutes minutes (30). A run whose numbers are no longer\n"
      "finite ends with 76; its newest good checkpoint stays. A run folder has one run at a time: a second start is\n"
      "refused while the first one lives.");
  command->add_option("config", options->config, "Experiment file (docs/configuration.md)")->required();
  command->add_option("overrides", options->overrides, "key.path=value, each replaces one key");
  command->callback([options] {
    stop::catch_signals(/*interrupt_too=*/true);
    const Config config = load_config(options->config, options->overrides);
    resolve_data_parallel(config, launcher_ranks().size);
    TrainResult result;
    run_in_world(
        config.run,
        [&](World& world) {
          log_rank_map(world);
          result = train(config, world.comm,
                         {world.device.index, program_origin(doctor::gather_texts(world.comm, host_name()))});
        },
        config.parallel);
    if (result.end == TrainEnd::stopped) throw Stopped("the run has more to do");
    if (result.end == TrainEnd::diverged) throw Diverged(result.reason);
  });
}

}  // namespace lamina
