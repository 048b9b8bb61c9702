// NCCL for views of GPUs, another transport for the host's: ranks with a GPU each. Callers see no nccl.h.
//
// Nothing blocks the host longer than NCCL needs to take an operation. An operation runs on a stream of NCCL's own after what was
// issued to the given stream before the call; wait() makes that stream, not the host, wait for it, so that later work there sees
// the result. (The operands may be reused in that stream's order; the host may not touch them before it has synchronised.)
// test() tells whether it has finished. Operations of the group run in the order of issue; between two ranks those of one tag and
// direction do, on a connection of their own, made at the first use while everything else goes on: a receive that is posted early
// holds up nothing else.
//
// What differs from the transports of the host:
//   - sums are not taken in rank order but as NCCL's algorithms do, which depend on the size, the group and the machine. The
//     same layout on the same machines gives the same bits; other layouts, and the staged transport, differ in the last ones;
//   - the maximum and minimum of what contains a NaN is not defined.
// Both sides of a transfer must agree on its size: NCCL does not tell them apart. Bytes are counted as the host's transport would
// send them.
//
// Failures: every test(), every wait(), and Stream::synchronize() of the streams that were given to operations look for errors of
// NCCL, for operations that last too long (their operands ready), and for the end of the job. Any of these aborts all of this
// rank's connections, so that its kernels give up, and throws; later calls throw too.
#pragma once

#include <memory>
#include <string>

#include "parallel/comm/communicator.h"

namespace lamina::comm {

struct NcclOptions {
  double timeout_seconds = 600;
  int64_t small_all_reduce_bytes = 64 << 10;  // as CommunicatorOptions has it: for counting bytes
  int max_ctas_per_channel = 4;               // multiprocessors that a transfer between two ranks may occupy
};

// Collective over `host`, which carries the identifiers and the host's views. Every rank has a device of its own.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host, Device device,
                                                     const NcclOptions& options = {});

// "2.28.3": of the header this was built with, and of the library that runs.
std::string nccl_built_version();
std::string nccl_loaded_version();

}  // namespace lamina::comm
