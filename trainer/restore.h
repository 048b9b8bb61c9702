// A model from a checkpoint, for evaluation and sampling.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include "trainer/checkpoint.h"
#include "trainer/engine.h"

namespace lamina {

struct Restored {
  Config config;  // the checkpoint's, after `adjust`
  CheckpointInfo info;
  std::unique_ptr<Engine> engine;
};

// `path` itself when it is a checkpoint, the newest good one when it is a run folder (every byte of that one is read). Collective.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& path, comm::Communicator& comm);

// `path` as above. Collective. Optimizer state is not read. The engine computes where run.device says, after `adjust`, on the GPU
// `device_index` if on one.
Restored restore_parameters(const std::filesystem::path& path, comm::Communicator& comm,
                            const std::function<void(Config&)>& adjust = {}, int device_index = 0);

// The same into an engine that exists, whose masters and parameters they become. Collective.
void load_parameters(const std::filesystem::path& path, Engine& engine, comm::Communicator& comm);

}  // namespace lamina
