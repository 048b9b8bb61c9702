// `lamina train`: from a configuration to a finished run folder.
#pragma once

#include "configs/schema/config.h"
#include "parallel/comm/communicator.h"

namespace lamina {

// Collective over all ranks. Resumes from the newest good checkpoint of the run folder. Throws Error for anything that a
// user can mend; then the run folder is as the last completed step left it. With run.device: cuda this rank computes on the GPU
// `device_index`, whose memory `comm` must be able to carry.
void train(Config config, comm::Communicator& comm, int device_index = 0);

}  // namespace lamina
