// spikes.jsonl of a run folder: each spike (spike_watch.h) and what was done about it. The batches that were passed over stand here and
// in checkpoints, so that a run that is resumed goes past them too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "data/passed_batches.h"
#include "parallel/comm/communicator.h"

namespace lamina {

struct Spike {
  int64_t step = 0;   // that it was seen in, from 1
  int64_t batch = 0;  // that this step took
  OnSpike action = OnSpike::warn;
  std::vector<StepRange> passed;  // batches passed over from here on
  std::string reason;
};

// Of the file, without a process group; none without the file. Errors of SpikeLog.
std::vector<Spike> read_spikes(const std::filesystem::path& path);

class SpikeLog {
 public:
  SpikeLog() = default;
  // Collective: what rank 0 finds in the file, on every rank. Error for a line that holds something else; half a line at the end, of a
  // process that was killed, counts as absent.
  SpikeLog(std::filesystem::path path, comm::Communicator& comm);

  // Rank 0, before the first add(): the file holds whole lines, and of spikes that were only told none after `step`, which come again.
  void begin_writing(int64_t step);
  // On every rank; rank 0 writes. Error on a full disk.
  void add(const Spike& spike, bool writes);

  PassedBatches passed() const;
  // Spikes that passed batches over, among the last `window` batches before `batch`.
  int64_t num_recent(int64_t batch, int64_t window) const;

 private:
  std::filesystem::path path_;
  std::vector<Spike> spikes_;
};

}  // namespace lamina
