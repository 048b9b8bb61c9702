// Ranks as threads of one process: fast tests, the thread sanitizer, several ranks on one GPU. Transfers are copied once,
// straight from the sender's buffer to the receiver's, by whichever of the two comes second; a send is therefore done only
// when its receive was posted.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/comm/p2p.h"

namespace lamina::comm {

// [i] is rank i's, to be used by one thread.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size, const CommunicatorOptions& options = {});

// A group of one rank.
std::unique_ptr<Communicator> make_self_communicator(const CommunicatorOptions& options = {});

// Runs `body` on `size` threads, one rank each, and returns when all have ended. When one throws, the pending and future
// calls of the others throw too, and the first failure is thrown here with its rank in front.
void run_threads(int size, const std::function<void(Communicator&)>& body, const CommunicatorOptions& options = {});

}  // namespace lamina::comm
