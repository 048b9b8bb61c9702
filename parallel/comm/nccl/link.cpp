#include "parallel/comm/nccl/link.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/device/cuda/check.h"

namespace lamina::comm::nccl {

void check(ncclResult_t result, ncclComm_t comm, const std::string& doing) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  const char* details = ncclGetLastError(comm);
  const bool has_details = details != nullptr && *details != '\0';
  throw Error("NCCL: {}: {}{}{}", doing, ncclGetErrorString(result), has_details ? ": " : "",
              has_details ? details : "");
}

Event EventPool::take() {
  if (free_.empty()) return {};
  Event event = std::move(free_.back());
  free_.pop_back();
  return event;
}

void Link::open(const std::function<Request(TensorView)>& exchange) {
  if (place_.rank == 0) {
    ncclUniqueId id;
    check(ncclGetUniqueId(&id), nullptr, "making the identifier of " + place_.name);
    static_assert(sizeof id == sizeof id_);
    std::memcpy(id_.data(), &id, sizeof id);
  }
  exchange_ = exchange(TensorView(id_.data(), DType::i32, {static_cast<int64_t>(id_.size())}));
}

void Link::connect() {
  cuda::check(cudaSetDevice(place_.device.index), "choosing a GPU");
  ncclUniqueId id;
  std::memcpy(&id, id_.data(), sizeof id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  if (place_.max_ctas > 0) config.maxCTAs = place_.max_ctas;
  check(ncclCommInitRankConfig(&comm_, place_.size, id, place_.rank, &config), nullptr, "connecting " + place_.name);
  phase_ = Phase::connecting;
}

bool Link::in_progress() {
  ncclResult_t result = ncclSuccess;
  check(ncclCommGetAsyncError(comm_, &result), comm_, place_.name);
  check(result, comm_, place_.name);
  return result == ncclInProgress;
}

void Link::advance() {
  if (phase_ == Phase::gone || phase_ == Phase::closing) return;
  if (!exchanged_) exchanged_ = exchange_.test();
  if (phase_ == Phase::exchanging) {
    if (!exchanged_ && place_.rank != 0) return;  // rank 0 knows it already
    connect();
  }
  if (phase_ == Phase::connected && waiting_.empty() && launched_.empty()) return;
  if (in_progress()) return;
  phase_ = Phase::connected;
  while (!waiting_.empty()) {
    DeviceOperation& next = *waiting_.front();
    if (!next.issued) {
      next.ready.hold(stream_);
      cuda::check(cudaSetDevice(place_.device.index), "choosing a GPU");
      next.issue(comm_, stream_);
      next.issued = true;
    }
    // Until NCCL says so its kernel may not be in the stream yet, and nothing else may be issued.
    if (in_progress()) return;
    next.done.record(stream_);
    next.launched = true;
    next.issue = nullptr;
    next.seen = {};
    launched_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  while (!launched_.empty() && launched_.front()->done.reached()) launched_.pop_front();
}

void Link::check_overdue(double timeout_seconds, const std::string& who) const {
  if (phase_ == Phase::gone || (waiting_.empty() && launched_.empty())) return;
  DeviceOperation& oldest = launched_.empty() ? *waiting_.front() : *launched_.front();
  if (!oldest.ready.reached()) return;  // its operands are still computed here
  const Clock::time_point now = Clock::now();
  if (oldest.seen == Clock::time_point{}) oldest.seen = now;
  const double seconds = std::chrono::duration<double>(now - oldest.seen).count();
  if (seconds > timeout_seconds) report_overdue(oldest, seconds, who);
}

void Link::report_unconnected(double seconds, const std::string& who) const {
  throw Error("{}: {} is not there after {:.1f} s: {}", who, place_.name, seconds,
              phase_ == Phase::exchanging ? "it was never begun at the other end" : "NCCL does not connect to there");
}

void Link::report_overdue(const DeviceOperation& operation, double seconds, const std::string& who) const {
  const char* state = "the transfer does not end";
  if (phase_ == Phase::exchanging) state = "it was never begun there";
  if (phase_ == Phase::connecting) state = "NCCL does not connect to there";
  throw Error("{}: {} is not finished after {:.1f} s; waiting for {}: {}", who, operation.what, seconds,
              operation.peers, state);
}

void Link::start_closing() {
  if (phase_ == Phase::connecting || phase_ == Phase::connected) {
    stream_.synchronize();
    launched_.clear();
  }
  if (phase_ != Phase::connected) return;
  exchange_.wait();  // the other side has it: it is connected
  check(ncclCommFinalize(comm_), comm_, "closing " + place_.name);
  phase_ = Phase::closing;
}

bool Link::closed() {
  if (phase_ == Phase::closing) {
    if (in_progress()) return false;
    check(ncclCommDestroy(comm_), comm_, "closing " + place_.name);
    comm_ = nullptr;
    phase_ = Phase::gone;
  }
  return true;
}

void Link::abort() noexcept {
  exchange_.give_up();
  if (comm_ != nullptr) ncclCommAbort(comm_);
  comm_ = nullptr;
  phase_ = Phase::gone;
}

}  // namespace lamina::comm::nccl
