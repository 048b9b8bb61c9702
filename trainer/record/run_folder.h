// The run folder: config.yaml, log.txt, starts.jsonl, metrics.jsonl, layers.jsonl, spikes.jsonl, events.out.tfevents.*, traces/,
// checkpoints/, lock, and diverged.json when the last start diverged.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/io/folder_lock.h"
#include "parallel/comm/communicator.h"
#include "trainer/record/metrics.h"

namespace lamina {

struct RunFolder {
  std::filesystem::path root;
  std::filesystem::path config() const { return root / "config.yaml"; }
  std::filesystem::path log() const { return root / "log.txt"; }
  std::filesystem::path metrics() const { return root / "metrics.jsonl"; }
  std::filesystem::path layers() const { return root / "layers.jsonl"; }
  std::filesystem::path starts() const { return root / "starts.jsonl"; }
  std::filesystem::path spikes() const { return root / "spikes.jsonl"; }
  std::filesystem::path traces() const { return root / "traces"; }
  std::filesystem::path checkpoints() const { return root / "checkpoints"; }
  std::filesystem::path divergence() const { return root / "diverged.json"; }
};

RunFolder run_folder_of(const Config& config);

// `folder` can be written, or made; nothing is touched. Error that begins with `key`.
void check_can_write(const std::string& key, const std::filesystem::path& folder);

// Collective. Rank 0 locks the run folder, which is made where it is not there, and holds `lock` from then on; FolderLocked when another
// process has it. False: the ranks were asked to stop while they waited for a sign of life of a holder on another machine.
bool lock_run_folder(const RunFolder& folder, comm::Communicator& comm, std::unique_ptr<io::FolderLock>& lock);

// Collective, and writes nothing. Refuses a folder that can't be written, or holds another experiment's results
// (check_same_experiment against its config.yaml). Error on every rank, or on none.
void check_run_folder(const RunFolder& folder, const Config& config, comm::Communicator& comm);

// Collective. The same, then makes the folder and stores the resolved configuration.
RunFolder prepare_run_folder(const Config& config, comm::Communicator& comm);

// That the last start of the run ended in numbers that are not finite: what sweeps, fits and reports go by. Written when it ends so,
// removed when a start goes past its checks.
struct Divergence {
  int64_t step = 0;  // the one that it was seen in
  std::string reason;
};
std::optional<Divergence> read_divergence(const RunFolder& folder);  // Error when the file is damaged
void write_divergence(const RunFolder& folder, const Divergence& divergence);
void remove_divergence(const RunFolder& folder);

// The last batch of the run's order that it has trained on or passed over, as far as its newest checkpoint and spikes.jsonl say; 0: none.
int64_t last_batch(const RunFolder& folder);

// A run may go on with another layout, length, learning rate (of a group too) or interval; not with another model, data order, batch,
// seed, precision or optimizer; with other stages where those that have begun by batch `begun` stay as they are. What an older program wrote counts as what it did then. Throws Error naming the first key that differs in such a way, with both values;
// returns the lines of the other differences. `name` stands for the stored configuration in messages.
std::vector<std::string> check_same_experiment(const std::string& stored_yaml, const std::string& name,
                                               const Config& config,
                                               int64_t begun = std::numeric_limits<int64_t>::max());

// "key.path" -> value, from the form that to_yaml() writes: two spaces a level, one key a line, lists of sections.
std::map<std::string, std::string> flatten_config(const std::string& resolved_yaml);

// Of the last row: how many processes have worked on the run. 0: none.
int64_t last_start(const RunFolder& folder);

// Rank 0, before a MetricsWriter is opened: drops the rows after `step` (0: all) and a half-written last line, so that
// a resumed run has each step once.
void truncate_metrics(const RunFolder& folder, int64_t step);

// Whether the last row is that of `step` and has a validation loss that is not finite.
bool has_infinite_validation(const RunFolder& folder, int64_t step);

// Rank 0, before a MetricsWriter is opened: whether the last row is that of `step` and has no `key`, and adding what it lacks.
bool lacks(const RunFolder& folder, int64_t step, const std::string& key);
void add_to_last_row(const RunFolder& folder, const JsonRow& added);

}  // namespace lamina
