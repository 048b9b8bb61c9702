// The run folder: config.yaml, log.txt, metrics.jsonl, layers.jsonl, events.out.tfevents.*, traces/, checkpoints/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "parallel/comm/communicator.h"

namespace lamina {

struct RunFolder {
  std::filesystem::path root;
  std::filesystem::path config() const { return root / "config.yaml"; }
  std::filesystem::path log() const { return root / "log.txt"; }
  std::filesystem::path metrics() const { return root / "metrics.jsonl"; }
  std::filesystem::path layers() const { return root / "layers.jsonl"; }
  std::filesystem::path traces() const { return root / "traces"; }
  std::filesystem::path checkpoints() const { return root / "checkpoints"; }
};

// Collective. Creates run.output_dir, proves that it can be written, refuses it when it holds another experiment's
// results (check_same_experiment against its config.yaml), and stores the resolved configuration. Error on every rank,
// or on none.
RunFolder prepare_run_folder(const Config& config, comm::Communicator& comm);

// A run may go on with another layout, length, learning rate or interval; not with another model, data order, batch,
// seed, precision or optimizer. Throws Error naming the first key that differs in such a way, with both values;
// returns the lines of the other differences. `name` stands for the stored configuration in messages.
std::vector<std::string> check_same_experiment(const std::string& stored_yaml, const std::string& name,
                                               const Config& config);

// "key.path" -> value, from the form that to_yaml() writes: two spaces a level, one key a line, lists of sections.
std::map<std::string, std::string> flatten_config(const std::string& resolved_yaml);

// Rank 0, before a MetricsWriter is opened: drops the rows after `step` (0: all) and a half-written last line, so that
// a resumed run has each step once.
void truncate_metrics(const RunFolder& folder, int64_t step);

// Rank 0, before a MetricsWriter is opened: whether the last row is that of `step` and has no validation loss, and adding it.
bool lacks_validation(const RunFolder& folder, int64_t step);
void add_validation(const RunFolder& folder, int64_t step, double loss, double bits_per_byte);

}  // namespace lamina
