// A run folder as its readers see it: sweeps, fits, reports. Nothing here writes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "data/sampler.h"
#include "trainer/record/run_folder.h"

namespace lamina::study {

// The rows of a file in order: the next one at each call, absent after the last. Memory use doesn't grow with the file.
using RowReader = std::function<std::optional<nlohmann::json>()>;

// Of a folder that `lamina train` wrote. The readers begin at the first row of metrics.jsonl and layers.jsonl (docs/formats.md) as long
// as these were when the run was read: it may be going on. A half-written last line is no row. A reader throws an Error naming the file
// and the line for one that is no row.
struct RunData {
  std::filesystem::path folder;
  std::string name;  // run.name
  Config config;     // of config.yaml; model.vocab_size is resolved
  std::function<RowReader()> metrics;
  std::function<RowReader()> layers;  // of no rows with logging.layer_stats_interval: 0
  nlohmann::json last_row;            // of metrics.jsonl
};

// Error naming the folder, the file and the line: no such folder, no config.yaml, no metrics.jsonl, no row.
RunData read_run(const std::filesystem::path& folder);

// What a run's last start says of its data (starts.jsonl); the hash is empty where an older program wrote it.
struct RunIdentity {
  std::string tokenizer_hash;
  std::optional<DataIdentity> data;
};
RunIdentity read_identity(const std::filesystem::path& folder);

// The first of tokenizer, training data and validation data that is not the same in both, with both values; empty: none, or nothing known.
std::string first_data_difference(const RunIdentity& a, const RunIdentity& b, bool validation_only = false);

// How far a run is, without reading its rows.
struct RunProgress {
  int64_t step = 0;       // of the newest whole checkpoint
  int64_t num_steps = 0;  // train.num_steps of its config.yaml; 0: there is none yet
  bool is_done() const { return num_steps > 0 && step >= num_steps; }
};
RunProgress read_progress(const std::filesystem::path& folder);

// Whether the run has ended in numbers that are not finite: it says so itself (diverged.json), or its row of the last step has a loss
// or a validation loss of null, as in folders of older programs. `last_row` may be null.
std::optional<Divergence> find_divergence(const RunFolder& folder, const nlohmann::json& last_row, int64_t num_steps);
std::optional<Divergence> find_divergence(const RunData& run);

// Floating-point operations of the steps that its rows tell of, each with its own seq_len (model/cost_model.h).
double training_flops(const RunData& run);

// sweep.json of a sweep's folder: what `lamina sweep` made of its file, the same at every start.
struct SweepRun {
  std::string name;     // of the run, and of its folder below the sweep's
  std::string size;     // of the ladder; "" without one
  std::string variant;  // the axes' values, joined by '-'; "" without axes
  uint64_t seed = 0;
};
struct SweepData {
  std::filesystem::path folder;
  std::string name;
  std::vector<SweepRun> runs;  // in the order of the sweep's file
};
bool is_sweep(const std::filesystem::path& folder);         // has a sweep.json
SweepData read_sweep(const std::filesystem::path& folder);  // Error when it is not one, or not whole
void write_sweep(const SweepData& sweep);                   // atomically, to folder/sweep.json

}  // namespace lamina::study
