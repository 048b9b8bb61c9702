// What a command that may run under mpirun or srun needs from its process: the ranks, the threads, the log.
#pragma once

#include <functional>

#include "configs/schema/config.h"
#include "parallel/comm/communicator.h"

namespace lamina {

// The ranks of this job. Valid only inside the body that run_in_world() calls.
struct World {
  comm::Communicator& comm;  // all ranks; carries the memory of the host and of the ranks' devices
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the ranks of this machine
  int local_size = 1;
  int num_threads = 1;  // run.num_threads, or this rank's share of the cores; already applied
  Device device;        // where this rank computes: run.device, and of several GPUs its own
};

// Rank and size as the environment of mpirun or srun tells them, before MPI is up.
struct LauncherRanks {
  int rank = 0;
  int size = 1;
  bool launched = false;  // by mpirun, mpiexec or srun
};
LauncherRanks launcher_ranks();

// Starts MPI when a launcher started this process (a single rank otherwise), configures the log and the threads, and calls
// `body`. An exception on one of several ranks is logged with its rank and aborts the whole job, before anything is
// unwound that would wait for the other ranks; with a single rank it passes through to the caller.
// With run.device: cuda each rank of a machine takes a GPU of its own while there are enough; Error, before MPI starts, when this
// machine has none that is usable.
// Of `parallel` it takes how the GPUs talk to each other, and how long a rank waits for another before it ends the job.
// Call it at most once, after the configuration was decoded.
void run_in_world(const RunConfig& run, const std::function<void(World&)>& body, const ParallelConfig& parallel = {});

}  // namespace lamina
