// Which GPU a rank computes on, and how the ranks' GPUs talk to each other.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "configs/schema/config.h"
#include "parallel/comm/communicator.h"

namespace lamina {

bool has_nccl();  // this build

void require_gpu();  // to be called before MPI starts: an Error when this machine has no usable GPU

// --device of a command that writes text with a checkpoint: cpu, cuda or auto, the default.
void add_device_option(CLI::App& command, std::string& device);
// What was given there, auto being cpu where no GPU is usable. An Error where cuda was given then. To be called before MPI starts.
std::string usable_device(const std::string& given);

struct GpuPlacement {
  Device device;
  std::string sharing;  // two ranks on one GPU of the job, in words; empty when each has its own
};
// Local ranks take the GPUs that they see in turn. Collective.
GpuPlacement place_on_gpu(comm::Communicator& comm, int local_rank);

// A GPU that waits longer than `timeout_seconds` for another ends the job.
// `host` for the hosts' memory, and the transport that fits for the GPUs'. The same on all ranks. Collective.
std::unique_ptr<comm::Communicator> connect_gpus(std::unique_ptr<comm::Communicator> host,
                                                 const GpuPlacement& placement, GpuTransport transport,
                                                 double timeout_seconds);

}  // namespace lamina
