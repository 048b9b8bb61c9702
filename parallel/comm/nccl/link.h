// One NCCL communicator with a stream of its own, and the operations that were given to it, in order. Private to
// parallel/comm/nccl.
#pragma once

#include <nccl.h>

#include <array>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/device/stream.h"
#include "parallel/comm/communicator.h"

namespace lamina::comm::nccl {

using Clock = std::chrono::steady_clock;

// "NCCL: <doing>: <its reason>". In progress is no failure.
void check(ncclResult_t result, ncclComm_t comm, const std::string& doing);

// Events are made once and used again.
class EventPool {
 public:
  Event take();
  void give_back(Event event) { free_.push_back(std::move(event)); }

 private:
  std::vector<Event> free_;
};

// Work of one call: what to issue, and the points in the streams before and after it.
struct DeviceOperation {
  explicit DeviceOperation(std::shared_ptr<EventPool> pool)
      : events(std::move(pool)), ready(events->take()), done(events->take()) {}
  ~DeviceOperation() {
    events->give_back(std::move(ready));
    events->give_back(std::move(done));
  }
  DeviceOperation(const DeviceOperation&) = delete;
  DeviceOperation& operator=(const DeviceOperation&) = delete;

  std::string what;   // "recv of 148 bytes from rank 3 with tag 5"
  std::string peers;  // "rank 3"
  std::function<void(ncclComm_t, Stream&)> issue;
  std::shared_ptr<EventPool> events;
  Event ready, done;
  bool issued = false;     // handed to NCCL
  bool launched = false;   // NCCL has put it into the stream; `done` is recorded
  Clock::time_point seen;  // pending, with its operands ready, for the first time; none: not yet
};

// The members of a link, and how its identifier is told.
struct LinkPlace {
  Device device;
  int rank = 0, size = 1;
  int max_ctas = 0;  // 0: NCCL's choice
  std::string name;  // for failures
};

class Link {
 public:
  explicit Link(LinkPlace place) : place_(std::move(place)), stream_(place_.device) {}
  ~Link() { abort(); }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // The member of rank 0 makes the identifier. Then it travels by the request that `exchange` returns for it.
  void open(const std::function<Request(TensorView)>& exchange);
  void add(std::shared_ptr<DeviceOperation> operation) { waiting_.push_back(std::move(operation)); }

  // Moves on without blocking, as far as it goes; throws what went wrong in NCCL.
  void advance();
  bool is_connected() const { return phase_ == Phase::connected; }
  // Throws when the oldest operation, its operands ready, lasts longer.
  [[noreturn]] void report_unconnected(double seconds, const std::string& who) const;
  void check_overdue(double timeout_seconds, const std::string& who) const;
  [[noreturn]] void report_overdue(const DeviceOperation& operation, double seconds, const std::string& who) const;

  // Orderly end, collective over the members: first start_closing() of all links, then closed() until it is true.
  void start_closing();
  bool closed();
  void abort() noexcept;  // kernels that run give up

 private:
  enum class Phase { exchanging, connecting, connected, closing, gone };

  bool in_progress();  // of the last call; throws its failure
  void connect();

  LinkPlace place_;
  Stream stream_;
  Phase phase_ = Phase::exchanging;
  std::array<int32_t, sizeof(ncclUniqueId) / sizeof(int32_t)> id_{};
  Request exchange_;
  bool exchanged_ = false;
  ncclComm_t comm_ = nullptr;
  std::deque<std::shared_ptr<DeviceOperation>> waiting_;   // not launched, oldest first
  std::deque<std::shared_ptr<DeviceOperation>> launched_;  // not finished, oldest first
};

}  // namespace lamina::comm::nccl
