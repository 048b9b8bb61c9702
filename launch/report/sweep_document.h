// What a page shows of a sweep's folder.
#pragma once

#include <nlohmann/json.hpp>

#include "launch/study/run_data.h"

namespace lamina::report {

//   name, folder, variants, sizes      in the order of the sweep's file
//   runs   [{name, size, variant, seed, state, compute, tokens, loss, validation_loss, series}]; the numbers null before it began
//   norms  [{size, variant, num_seeds, num_runs, sites: [{layer, sublayer}], hidden_rms: [mean over seeds]}]: the last step of
//          the finished runs
//   fit    {variants, gains, isoflop, ..} of launch/study/scaling_law.h, or {problem}: why there is none
// Error: not a sweep's folder, or a run in it that is broken (study::read_run).
nlohmann::json sweep_document(const study::SweepData& sweep);

}  // namespace lamina::report
