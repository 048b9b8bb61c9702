// What a page shows of layers.jsonl: maps of sublayers x steps, of depth weights, and of the experts' load.
#pragma once

#include <nlohmann/json.hpp>

#include "launch/report/run_document.h"

namespace lamina::report {

// In one pass over layers.jsonl, in memory that doesn't grow with the number of logged steps. null without rows. Values have six digits.
//   logged        steps in the file
//   per_column    of them, that a column of the maps stands for: a power of two, the last column may have fewer
//   steps         first step of each column; with per_column above 1 also last_steps
//   rows          [{layer, sublayer}]
//   quantities    {hidden_rms: [row][column], ..}: the largest value of the column's steps; null where a row has none. With per_column
//                 above 1 also `smallest`
//   depth         {steps, sources: [name], reads: [{layer, sublayer}], columns: [read][k], weights: [step][read][k]}, or null
//   cosines       {steps, sources: [name], cosines: [step][pair]}, or null
//   experts       {steps, layers, load: [step][layer][expert]}, or null
// The steps of the last three are every n-th logged one, n a power of two, and the last. Error naming the file and the step: a row that
// names no sublayer or one twice, steps that fall, or weights that are not those of the model.
nlohmann::json layer_document(const study::RunData& run, const Limits& limits);

}  // namespace lamina::report
