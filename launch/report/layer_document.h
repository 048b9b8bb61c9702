// What a page shows of layers.jsonl: maps of sublayers x steps, of depth weights, and of the experts' load.
#pragma once

#include <nlohmann/json.hpp>

#include "launch/report/run_document.h"

namespace lamina::report {

// null without rows. Values of maps have six digits.
//   logged        steps in the file
//   steps         those of the maps
//   rows          [{layer, sublayer}]
//   quantities    {hidden_rms: [row][step], ..}; null where a row has none
//   depth         {steps, sources: [name], reads: [{layer, sublayer}], columns: [read][k], weights: [step][read][k]}, or null
//   experts       {steps, layers, load: [step][layer][expert]}, or null
nlohmann::json layer_document(const study::RunData& run, const Limits& limits);

}  // namespace lamina::report
