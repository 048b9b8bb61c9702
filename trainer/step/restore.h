// A model from a checkpoint, for evaluation, sampling and runs that start from it. The whole model is loaded, or an Error names the key
// of `model` in which the checkpoint and the configuration differ (trainer/record/identity.h), or the tensor that has no place. A new run
// may add Attention Residuals to a model with the standard residual (check_model_to_start_from()).
#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include "data/sampler.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/step/engine.h"

namespace lamina {

struct Restored {
  std::filesystem::path checkpoint;
  Config config;  // the checkpoint's, after `adjust`
  CheckpointInfo info;
  std::unique_ptr<Engine> engine;
};

// `path` itself when it is a checkpoint, the newest good one when it is a run folder (every byte of that one is read). Collective.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& path, comm::Communicator& comm);

// `path` as above. Collective. Optimizer state is not read. The engine computes where run.device says, after `adjust`, on the GPU
// `device_index` if on one; for inference it holds nothing but the parameters.
Restored restore_parameters(const std::filesystem::path& path, comm::Communicator& comm, EngineUse use,
                            const std::function<void(Config&)>& adjust = {}, int device_index = 0);

// Error when a run of `config` can't start from the checkpoint: another model, or another tokenizer than that of `sampler`'s data.
// Returns how many parameters are new.
size_t check_start(const std::filesystem::path& checkpoint, const Config& config, const Sampler& sampler);

// The same into an engine that exists, whose masters and parameters they become, after check_start(). Collective. Returns how many
// parameters are new, as at the start of training.
size_t load_parameters(const std::filesystem::path& path, Engine& engine, const Sampler& sampler,
                       comm::Communicator& comm);

}  // namespace lamina
