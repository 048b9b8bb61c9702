// What ranks agree on: all go on or all throw, so that no rank waits for one that has failed. And the texts that they hand each other.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"

namespace lamina::comm {

// Collective. Returns when no rank passes a failure. Otherwise a rank that failed rethrows its own, and the others throw
// ErrorElsewhere with the message of the first one that did; so does one whose plain Error an earlier rank has word for word.
void agree(comm::Communicator& comm, const std::exception_ptr& failure);

template <class Body>
void run_and_agree(comm::Communicator& comm, Body&& body) {
  std::exception_ptr failure;
  try {
    body();
  } catch (...) {
    failure = std::current_exception();
  }
  agree(comm, failure);
}

// Collective: whether any rank was asked to stop (core/base/stop.h). `other`, when given, travels with it: set on a rank, it is set
// on all of them afterwards.
bool stop_requested_anywhere(comm::Communicator& comm, bool* other = nullptr);

// Collective. Rank 0 gets every rank's text, in rank order; the others get nothing.
std::vector<std::string> gather_text(comm::Communicator& comm, const std::string& text);

// Collective. The threads that each rank computes with: "2", or "2, 1, 1" where they differ. All ranks get the same.
std::string threads_of_ranks(comm::Communicator& comm);

// Collective. Everybody gets rank 0's text.
std::string broadcast_text(comm::Communicator& comm, const std::string& text);

}  // namespace lamina::comm
