// `lamina train`: from a configuration to a finished run folder.
#pragma once

#include "configs/schema/config.h"
#include "parallel/comm/communicator.h"

namespace lamina {

enum class TrainEnd {
  done,     // at train.num_steps
  stopped,  // as the ranks agreed on: a stop was requested (core/base/stop.h) or train.max_minutes are over. The newest
            // checkpoint is of the last completed step, and the same call goes on from there
};

// Collective over all ranks. Resumes from the newest good checkpoint of the run folder. Throws Error for anything that a
// user can mend; then the run folder is as the last completed step left it. With run.device: cuda this rank computes on the GPU
// `device_index`, whose memory `comm` must be able to carry.
TrainEnd train(Config config, comm::Communicator& comm, int device_index = 0);

}  // namespace lamina
