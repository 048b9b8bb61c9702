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
//
// Later ones win: the experiment file, set, the size's keys, the axes in their order, the seed.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "launch/study/run_data.h"

namespace lamina::study {

struct PlannedRun {
  SweepRun id;    // name: <size>-<variant>-s<seed>, without the parts that the sweep doesn't have
  Config config;  // run.name and run.output_dir are the sweep's
};

struct SweepPlan {
  std::string name;
  std::filesystem::path folder;  // output_dir; default runs/<name>
  int ranks = 1;
  std::vector<PlannedRun> runs;  // sizes outermost, then variants, then seeds
  SweepData data() const;        // what sweep.json says
};

// Reads and expands a sweep's file, and decodes every run's configuration. Error naming the file and the line: unknown keys (of
// the sweep, or of an experiment), values that no experiment may have, names that clash or can't name a folder.
SweepPlan load_sweep(const std::filesystem::path& file);
SweepPlan parse_sweep(const std::string& yaml, const std::string& name);

}  // namespace lamina::study
