// SWEEP.yaml: many runs of one study, from a base experiment, a ladder of sizes, axes and seeds.
//
//   name: cpu_attnres
//   base: configs/tiny.yaml              # an experiment file; a relative path is looked up beside this file
//   set: {data.validation.interval: 0}   # keys of every run
//   ladder:                              # sizes, each with its own shape, tokens, batch and learning rate:
//     small: small.yaml                  #   an experiment file in place of the base,
//     large: {model.hidden_size: 128}    #   or keys
//   axes:                                # every combination is a variant
//     residual:                          #   named choices, each a section of keys,
//       standard: {model.residual: standard, model.attn_res_block_size: null}
//       block: {model.residual: block_attnres}
//     train.grad_clip: [0.5, 1.0]        #   or the values of one key
//   seeds: [1, 2, 3]
//   ranks: 1                             # of each run
//   tune:                                # a first stage chooses the value of one key (sweep_tune.h)
//     key: train.optimizer.lr
//     values: [2.5e-3, 5.0e-3, 1.0e-2]
//     per: [ladder, residual]            #   for each combination of these; the ladder and all axes when not given
//     seeds: [1001]                      #   of the first stage's runs
//     rungs: [0.25, 0.5, 1.0]            #   shares of train.num_steps after which the runs are compared
//     keep: 0.5                          #   the share of the values that goes on
//     schedule: shortened                #   or continued; when not given, as the learning rate's schedule allows
//   early_stop:                          # of hopeless runs; absent: none (sweep_early_stop.h)
//     margin: 0.2                        #   in validation loss, over the best of the run's cell at the same step
//     after: 0.5                         #   share of train.num_steps
//     per: [ladder]                      #   what makes a cell, as in tune
//
// Later ones win: the experiment file, set, the size's keys, the axes in their order, the tuned key, the seed.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "launch/study/run_data.h"

namespace lamina::study {

struct PlannedRun {
  SweepRun id;                     // name: <size>-<variant>-s<seed>, without the parts that the sweep doesn't have
  Config config;                   // run.name and run.output_dir are the sweep's
  std::vector<Config> candidates;  // with each of tune's values; config is the first one's until one is chosen
  bool awaits_tuning = false;
};

// Runs that agree in the size and the choices that a `per` names.
struct SweepCell {
  std::string name;          // these, joined by '-'; "all" when there are none
  std::vector<size_t> runs;  // of SweepPlan::runs
};

enum class RungSchedule { shortened, continued };

struct TunePlan {
  std::string key;
  std::vector<std::string> values;  // as the file has them
  std::vector<uint64_t> seeds;
  std::vector<double> rungs;  // in (0, 1], rising
  double keep = 0.5;
  RungSchedule schedule = RungSchedule::shortened;
  std::vector<SweepCell> cells;
};

struct EarlyStop {
  double margin = 0;
  double after = 0.5;
  std::vector<SweepCell> cells;
};

struct SweepPlan {
  std::string name;
  std::filesystem::path folder;  // output_dir; default runs/<name>
  int ranks = 1;
  std::vector<PlannedRun> runs;  // sizes outermost, then variants, then seeds
  std::optional<TunePlan> tune;
  std::optional<EarlyStop> early_stop;
  SweepData data() const;  // what sweep.json says
};

// Steps of a run at a rung, at least one.
int64_t rung_steps(const Config& config, double share);
// The text's value when all of it is a finite number.
std::optional<double> parse_number(const std::string& text);

// Reads and expands a sweep's file, and decodes every run's configuration. Error naming the file and the line: unknown keys (of
// the sweep, or of an experiment), values that no experiment may have, names that clash or can't name a folder.
SweepPlan load_sweep(const std::filesystem::path& file);
SweepPlan parse_sweep(const std::string& yaml, const std::string& name);

}  // namespace lamina::study
