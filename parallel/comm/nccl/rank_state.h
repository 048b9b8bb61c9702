// What the groups of one rank share: all links, whose operations any test() and wait() moves on. Private to
// parallel/comm/nccl.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/comm/nccl/link.h"
#include "parallel/comm/nccl/nccl_communicator.h"

namespace lamina::comm::nccl {

class NcclState : public std::enable_shared_from_this<NcclState> {
 public:
  NcclState(Device device, const NcclOptions& options, int world_rank)
      : options_(options),
        device_(device),
        events_(std::make_shared<EventPool>()),
        who_(fmt::format("rank {}", world_rank)),
        world_rank_(world_rank) {}

  const NcclOptions& options() const { return options_; }
  Device device() const { return device_; }
  int world_rank() const { return world_rank_; }
  const std::shared_ptr<EventPool>& events() const { return events_; }

  void add_host(Communicator* host) { hosts_.push_back(host); }
  void remove_host(Communicator* host) { std::erase(hosts_, host); }
  std::shared_ptr<Link> make_link(LinkPlace place);
  void remove_links(const std::vector<std::shared_ptr<Link>>& links);

  void progress();  // of everything; throws when anything has failed
  void watch();     // the same while the host waits for a stream: also notices what lasts too long
  void watch_over(Stream& stream);
  void wait_until_connected(const Link& link);
  void wait_until_launched(const DeviceOperation& operation, const Link& link);

  void throw_if_failed() const;
  bool failed() const { return !failure_.empty(); }
  void fail(const std::string& reason) noexcept;  // aborts the links

 private:
  // Until `done`; past the timeout `report` throws.
  void wait_until(const std::function<bool()>& done, const std::function<void(double)>& report);

  NcclOptions options_;
  Device device_;
  std::shared_ptr<EventPool> events_;
  std::string who_;
  int world_rank_;
  std::vector<Communicator*> hosts_;
  std::vector<std::shared_ptr<Link>> links_;
  std::string failure_;
};

}  // namespace lamina::comm::nccl
