#include <exception>
#include <utility>

#include "core/base/log.h"
#include "parallel/comm/p2p.h"

namespace lamina::comm {

namespace {

// Destructors end here. While an exception unwinds the stack the peers may never come, so the operation is given up
// (the state's destructor takes its buffers back) instead of waited for.
void settle(std::unique_ptr<Request::State> state) noexcept {
  if (!state) return;
  try {
    if (std::uncaught_exceptions() > 0) {
      state->test();
    } else {
      state->wait();
    }
  } catch (const AbortedError&) {
    // Whoever caused it has said so.
  } catch (const std::exception& failure) {
    // The communicator remembers the failure: its next call throws.
    log::error("a pending operation was given up: {}", failure.what());
  }
}

}  // namespace

Request::Request(std::unique_ptr<State> state) : state_(std::move(state)) {}
Request::~Request() {
  settle(std::move(state_));
}
Request::Request(Request&& other) noexcept : state_(std::move(other.state_)) {}

Request& Request::operator=(Request&& other) noexcept {
  if (this != &other) settle(std::exchange(state_, std::move(other.state_)));
  return *this;
}

bool Request::test() {
  if (!state_) return true;
  if (!state_->test()) return false;
  state_.reset();
  return true;
}

void Request::wait() {
  if (!state_) return;
  // Taken out first: after a failure nothing is left to wait for.
  const std::unique_ptr<State> state = std::move(state_);
  state->wait();
}

void Request::give_up() {
  state_.reset();
}

}  // namespace lamina::comm
