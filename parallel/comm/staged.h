// Any transport, for views of a GPU: they travel through page-locked host memory. Serves ranks that share one GPU, and an MPI
// that knows nothing of GPUs. The bits are those of the host's transport.
//
// A view of the host goes straight to `host`. The operands of one call are all of the host or all of the stream's device. For
// device views the call waits until the stream has reached it (the operand is read then, in stream order); once wait() has
// returned, or test() has returned true, what is issued to that stream from then on sees the result. The staging memory is
// reused, by classes of sizes: the steady state allocates nothing.
#pragma once

#include <memory>

#include "core/device/memory_ledger.h"
#include "parallel/comm/communicator.h"

namespace lamina::comm {

// `ledger` may be null; when given it must outlive the communicator, its groups and their requests.
std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, MemoryLedger* ledger);
std::unique_ptr<Communicator> make_staged_communicator(Communicator& host, MemoryLedger* ledger);  // host outlives it

}  // namespace lamina::comm
