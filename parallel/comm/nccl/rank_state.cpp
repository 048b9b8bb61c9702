#include "parallel/comm/nccl/rank_state.h"

#include <algorithm>
#include <thread>

#include "core/base/error.h"
#include "parallel/comm/p2p.h"

namespace lamina::comm::nccl {

std::shared_ptr<Link> NcclState::make_link(LinkPlace place) {
  links_.push_back(std::make_shared<Link>(std::move(place)));
  return links_.back();
}

void NcclState::remove_links(const std::vector<std::shared_ptr<Link>>& links) {
  std::erase_if(links_, [&](const auto& link) { return std::find(links.begin(), links.end(), link) != links.end(); });
}

void NcclState::throw_if_failed() const {
  if (failed()) throw AbortedError("communication failed before: {}", failure_);
}

void NcclState::fail(const std::string& reason) noexcept {
  if (failure_.empty()) failure_ = reason;
  for (const auto& link : links_) link->abort();
}

void NcclState::progress() {
  try {
    // First: the reason for which the job ended is the cause of a failure of our own.
    if (!hosts_.empty()) hosts_.front()->progress();
    throw_if_failed();
    for (const auto& link : links_) link->advance();
  } catch (const std::exception& failure) {
    fail(failure.what());
    throw;
  }
}

void NcclState::watch() {
  progress();
  try {
    for (const auto& link : links_) link->check_overdue(options_.timeout_seconds, who_);
  } catch (const std::exception& failure) {
    fail(failure.what());
    throw;
  }
}

void NcclState::watch_over(Stream& stream) {
  if (stream.state()->watch) return;
  stream.set_watch([weak = weak_from_this()] {
    if (const auto state = weak.lock()) state->watch();
  });
}

void NcclState::wait_until(const std::function<bool()>& done, const std::function<void(double)>& report) {
  constexpr int64_t attempts_before_sleep = 1000;
  const auto start = Clock::now();
  for (int64_t attempt = 0;; ++attempt) {
    progress();
    if (done()) return;
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (seconds > options_.timeout_seconds) {
      try {
        report(seconds);
      } catch (const std::exception& failure) {
        fail(failure.what());
        throw;
      }
    }
    if (attempt < attempts_before_sleep) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
}

void NcclState::wait_until_connected(const Link& link) {
  wait_until([&] { return link.is_connected(); }, [&](double seconds) { link.report_unconnected(seconds, who_); });
}

void NcclState::wait_until_launched(const DeviceOperation& operation, const Link& link) {
  wait_until([&] { return operation.launched; },
             [&](double seconds) { link.report_overdue(operation, seconds, who_); });
}

}  // namespace lamina::comm::nccl
