// `lamina train`: from a configuration to a finished run folder.
#pragma once

#include <map>
#include <string>

#include "configs/schema/config.h"
#include "parallel/comm/communicator.h"

namespace lamina {

enum class TrainEnd {
  done,     // at train.num_steps
  stopped,  // as the ranks agreed on: a stop was requested (core/base/stop.h) or train.max_minutes are over. The newest
            // checkpoint is of the last completed step, and the same call goes on from there
  diverged,  // a loss, a gradient or a value to be saved was not finite, or the validation of the last step. The newest good
             // checkpoint stays, and the run folder says so (RunFolder::divergence)
};

struct TrainProcess {
  int device_index =
      0;  // with run.device: cuda, the GPU of this rank, whose memory the communicator must be able to carry
  // Of this process, for the checkpoints (CheckpointInfo::extra) and starts.jsonl: commit, command, hosts, libraries.
  std::map<std::string, std::string> origin = {};
};

struct TrainResult {
  TrainEnd end = TrainEnd::done;
  std::string reason;  // of a divergence: one line
};

// Collective over all ranks. Resumes from the newest good checkpoint of the run folder, which rank 0 locks meanwhile (FolderLocked
// when another process has it). Throws Error for anything that a user can mend: before the first step nothing was written then, and
// later the run folder is as the last completed step left it.
TrainResult train(Config config, comm::Communicator& comm, const TrainProcess& process = {});

}  // namespace lamina
