#include "parallel/comm/nccl/nccl_communicator.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <initializer_list>
#include <iterator>
#include <map>
#include <numeric>
#include <thread>
#include <tuple>
#include <utility>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/device/cuda_device.h"
#include "parallel/comm/collectives.h"
#include "parallel/comm/nccl/rank_state.h"

namespace lamina::comm {

namespace nccl {
namespace {

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i32:
      return ncclInt32;
    default:
      LAMINA_CHECK(false, "reduction of {}", name_of(dtype));
  }
}

ncclRedOp_t operation_of(ReduceOp op) {
  return op == ReduceOp::sum ? ncclSum : op == ReduceOp::max ? ncclMax : ncclMin;
}

size_t extent(int64_t count) {
  return static_cast<size_t>(count);
}

// One operation; the links and the streams do the rest.
class NcclRequest final : public Request::State {
 public:
  NcclRequest(std::shared_ptr<NcclState> state, std::shared_ptr<Link> link, std::shared_ptr<DeviceOperation> operation,
              const Stream& stream)
      : state_(std::move(state)), link_(std::move(link)), operation_(std::move(operation)), stream_(stream) {}

  // Given up: its kernel must not touch the operands any more, which the caller may free now.
  ~NcclRequest() override {
    if (!settled_) state_->fail(operation_->what + " was given up");
  }

  bool test() override {
    state_->progress();
    settled_ = operation_->launched && operation_->done.reached();
    return settled_;
  }
  void wait() override {
    state_->wait_until_launched(*operation_, *link_);
    operation_->done.hold(stream_);
    settled_ = true;
  }

 private:
  std::shared_ptr<NcclState> state_;
  std::shared_ptr<Link> link_;
  std::shared_ptr<DeviceOperation> operation_;
  Stream stream_;
  bool settled_ = false;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, std::shared_ptr<NcclState> state);
  ~NcclCommunicator() override;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  Request send(TensorView view, int destination, int tag, Stream& stream) override;
  Request recv(TensorView view, int source, int tag, Stream& stream) override;
  Request all_reduce(TensorView inout, ReduceOp op, Stream& stream) override;
  Request reduce_scatter(TensorView in, TensorView out, ReduceOp op, Stream& stream) override;
  Request all_gather(TensorView in, TensorView out, Stream& stream) override;
  Request broadcast(TensorView inout, int root, Stream& stream) override;
  Request all_to_all(TensorView in, TensorView out, Stream& stream) override;
  Request all_to_all_v(TensorView in, std::span<const int64_t> send_counts, TensorView out,
                       std::span<const int64_t> receive_counts, Stream& stream) override;
  void barrier() override { host_->barrier(); }
  void connect(std::span<const Channel> channels, bool collectives, Stream& stream) override;
  void progress() override { state_->progress(); }
  bool set_patient(bool patient) override { return host_->set_patient(patient); }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<NcclCommunicator>(host_->split(color, key), state_);
  }
  [[noreturn]] void abort(const std::string& reason) override {
    // The others learn the reason before NCCL tells them that this rank is gone.
    try {
      host_->abort(reason);
    } catch (...) {
      state_->fail(reason);
      throw;
    }
    std::abort();  // not reached; compilers don't see it through the pointer
  }
  int64_t take_bytes_sent() override { return host_->take_bytes_sent() + std::exchange(bytes_sent_, 0); }

 private:
  using Issue = std::function<void(ncclComm_t, Stream&)>;
  // To or from this rank, on one tag, in the order of the calls: what waits for its other half.
  struct ToSelf {
    std::deque<std::pair<TensorView, std::shared_ptr<DeviceOperation>>> sends, receives;
  };

  bool on_host(std::initializer_list<const TensorView*> views, Stream& stream, const char* operation);
  std::shared_ptr<DeviceOperation> make_operation(std::string what, std::string peers, Stream& stream, Issue issue);
  Request start(const std::shared_ptr<Link>& link, std::shared_ptr<DeviceOperation> operation, Stream& stream);
  Request collective(const char* name, int64_t num_bytes, Stream& stream, Issue issue);
  Request point_to_point(bool is_send, const TensorView& view, int peer, int tag, Stream& stream);
  Request to_self(bool is_send, const TensorView& view, int tag, Stream& stream);
  Request exchange(const char* name, const TensorView& in, std::vector<int64_t> send_counts, const TensorView& out,
                   std::vector<int64_t> receive_counts, Stream& stream);
  const std::shared_ptr<Link>& group_link();
  const std::shared_ptr<Link>& channel(bool is_send, int peer, int tag);
  std::string name_of_rank(int rank) const { return fmt::format("rank {}", world_ranks_[extent(rank)]); }

  std::unique_ptr<Communicator> host_;
  std::unique_ptr<Communicator> control_;  // carries identifiers: its messages don't meet those of the host's views
  std::shared_ptr<NcclState> state_;
  std::vector<int32_t> world_ranks_;  // of the members
  Stream host_stream_;                // the CPU's
  std::shared_ptr<Link> group_link_;
  std::map<std::tuple<bool, int, int>, std::shared_ptr<Link>> channels_;  // (is_send, peer, tag)
  std::shared_ptr<Link> self_link_;
  std::map<int, ToSelf> to_self_;  // [tag]
  int64_t bytes_sent_ = 0;
};

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> host, std::shared_ptr<NcclState> state)
    : host_(std::move(host)), control_(host_->split(0, host_->rank())), state_(std::move(state)) {
  int32_t own = state_->world_rank();
  world_ranks_.resize(extent(size()));
  control_
      ->all_gather(TensorView(&own, DType::i32, {1}), TensorView(world_ranks_.data(), DType::i32, {size()}),
                   host_stream_)
      .wait();
  state_->add_host(host_.get());
}

NcclCommunicator::~NcclCommunicator() {
  std::vector<std::shared_ptr<Link>> links;
  if (group_link_) links.push_back(group_link_);
  for (const auto& [key, link] : channels_) links.push_back(link);
  if (self_link_) links.push_back(self_link_);
  // Closing is collective: not while this rank is on its way out alone.
  if (!state_->failed() && std::uncaught_exceptions() == 0) {
    try {
      for (const auto& link : links) link->start_closing();
      const auto start = Clock::now();
      const auto all_closed = [&] {
        return std::count_if(links.begin(), links.end(), [](const auto& link) { return !link->closed(); }) == 0;
      };
      while (!all_closed()) {
        state_->progress();
        if (Clock::now() - start > std::chrono::duration<double>(state_->options().timeout_seconds))
          throw Error("NCCL: the other ranks do not close their connections");
        std::this_thread::yield();
      }
    } catch (const AbortedError&) {
      // Whoever caused it has said so.
    } catch (const std::exception& failure) {
      log::error("closing connections between GPUs: {}", failure.what());
    }
  }
  for (const auto& link : links) link->abort();
  state_->remove_links(links);
  state_->remove_host(host_.get());
}

// Where the operands of a call live, which is one place.
bool NcclCommunicator::on_host(std::initializer_list<const TensorView*> views, Stream& stream, const char* operation) {
  const Device device = (*views.begin())->device;
  for (const TensorView* view : views)
    LAMINA_CHECK(view->device == device, "{} between host and device memory, or between two devices", operation);
  if (device.kind == DeviceKind::cpu) return true;
  LAMINA_CHECK(device == state_->device(), "{} of a view that is not on this rank's GPU", operation);
  LAMINA_CHECK(stream.device() == device, "{} of a view of a GPU on a stream that is not of that GPU", operation);
  for (const TensorView* view : views) {
    LAMINA_CHECK(view->is_contiguous(), "{} of {}, which is not contiguous", operation, view->to_string());
    LAMINA_CHECK(view->data != nullptr || view->num_elements() == 0, "{} of an empty view", operation);
  }
  state_->throw_if_failed();
  state_->watch_over(stream);
  return false;
}

std::shared_ptr<DeviceOperation> NcclCommunicator::make_operation(std::string what, std::string peers, Stream& stream,
                                                                  Issue issue) {
  auto operation = std::make_shared<DeviceOperation>(state_->events());
  operation->what = std::move(what);
  operation->peers = std::move(peers);
  operation->issue = std::move(issue);
  operation->ready.record(stream);
  return operation;
}

Request NcclCommunicator::start(const std::shared_ptr<Link>& link, std::shared_ptr<DeviceOperation> operation,
                                Stream& stream) {
  link->add(operation);
  state_->progress();
  return Request(std::make_unique<NcclRequest>(state_, link, std::move(operation), stream));
}

const std::shared_ptr<Link>& NcclCommunicator::group_link() {
  if (!group_link_) {
    group_link_ = state_->make_link({state_->device(), rank(), size(), 0, fmt::format("a group of {} ranks", size())});
    group_link_->open([this](TensorView id) { return control_->broadcast(id, 0, host_stream_); });
  }
  return group_link_;
}

const std::shared_ptr<Link>& NcclCommunicator::channel(bool is_send, int peer, int tag) {
  std::shared_ptr<Link>& link = channels_[{is_send, peer, tag}];
  if (!link) {
    const std::string name =
        fmt::format("the connection {} {} with tag {}", is_send ? "to" : "from", name_of_rank(peer), tag);
    link = state_->make_link({state_->device(), is_send ? 0 : 1, 2, state_->options().max_ctas_per_channel, name});
    link->open([&](TensorView id) {
      return is_send ? control_->send(id, peer, tag, host_stream_) : control_->recv(id, peer, tag, host_stream_);
    });
  }
  return link;
}

// First all connections, while no kernel of NCCL's runs; then one message on each, at which NCCL makes what it left for later. Those
// one after another, everywhere in the same order: so no two of them wait for each other.
void NcclCommunicator::connect(std::span<const Channel> channels, bool collectives, Stream& stream) {
  if (size() == 1 || stream.device().kind == DeviceKind::cpu) return;
  const auto order = [this](const Channel& channel) {
    return std::tuple(channel.is_send ? rank() : channel.peer, channel.is_send ? channel.peer : rank(), channel.tag);
  };
  std::vector<Channel> sorted;
  std::copy_if(channels.begin(), channels.end(), std::back_inserter(sorted),
               [this](const Channel& channel) { return channel.peer != rank(); });
  std::sort(sorted.begin(), sorted.end(), [&](const Channel& a, const Channel& b) { return order(a) < order(b); });
  std::vector<std::shared_ptr<Link>> links;
  for (const Channel& each : sorted) links.push_back(channel(each.is_send, each.peer, each.tag));
  if (collectives) links.push_back(group_link());
  for (const auto& link : links) state_->wait_until_connected(*link);
  host_->barrier();

  const int64_t bytes_sent = bytes_sent_;
  const int64_t count = size();
  const Buffer memory(2 * count * size_of(DType::f32), state_->device(), nullptr, "connections");
  const TensorView all(memory.data(), DType::f32, {2 * count}, state_->device());
  const TensorView many = all.slice(0, 0, count), others = all.slice(0, count, 2 * count), one = all.slice(0, 0, 1);
  for (const Channel& each : sorted) {
    point_to_point(each.is_send, one, each.peer, each.tag, stream).wait();
    stream.synchronize();
  }
  if (collectives) {
    all_reduce(one, ReduceOp::sum, stream).wait();
    reduce_scatter(many, others.slice(0, 0, 1), ReduceOp::sum, stream).wait();
    all_gather(one, others, stream).wait();
    broadcast(one, 0, stream).wait();
    all_to_all(many, others, stream).wait();
    stream.synchronize();
  }
  bytes_sent_ = bytes_sent;
}

Request NcclCommunicator::collective(const char* name, int64_t num_bytes, Stream& stream, Issue issue) {
  std::string others;
  for (int r = 0; r < size(); ++r)
    if (r != rank()) others += fmt::format("{}{}", others.empty() ? "" : ", ", world_ranks_[extent(r)]);
  auto operation = make_operation(fmt::format("{} of {} bytes in a group of {}", name, num_bytes, size()),
                                  fmt::format("one of the ranks {}", others), stream, std::move(issue));
  return start(group_link(), std::move(operation), stream);
}

// A send to oneself meets its receive in the order of the calls, and is a copy.
Request NcclCommunicator::to_self(bool is_send, const TensorView& view, int tag, Stream& stream) {
  // Never connected: it only names what is awaited.
  if (!self_link_) self_link_ = std::make_shared<Link>(LinkPlace{state_->device(), 0, 1, 0, "messages to oneself"});
  auto operation = make_operation(fmt::format("{} of {} bytes {} itself with tag {}", is_send ? "send" : "recv",
                                              view.num_bytes(), is_send ? "to" : "from", tag),
                                  "its other half", stream, nullptr);
  ToSelf& pending = to_self_[tag];
  (is_send ? pending.sends : pending.receives).emplace_back(view, operation);
  while (!pending.sends.empty() && !pending.receives.empty()) {
    const auto [from, sent] = std::move(pending.sends.front());
    const auto [to, received] = std::move(pending.receives.front());
    pending.sends.pop_front();
    pending.receives.pop_front();
    LAMINA_CHECK(from.num_bytes() == to.num_bytes(), "rank {} sends {} bytes to itself and expects {} (tag {})", rank(),
                 from.num_bytes(), to.num_bytes(), tag);
    // On the stream of the later call, which is this one.
    sent->ready.hold(stream);
    received->ready.hold(stream);
    cuda::copy(to.data, from.data, from.num_bytes(), stream);
    for (const auto& half : {sent, received}) {
      half->done.record(stream);
      half->launched = true;
    }
  }
  return Request(std::make_unique<NcclRequest>(state_, self_link_, std::move(operation), stream));
}

Request NcclCommunicator::point_to_point(bool is_send, const TensorView& view, int peer, int tag, Stream& stream) {
  const char* name = is_send ? "send" : "recv";
  LAMINA_CHECK(peer >= 0 && peer < size(), "{} {} rank {} of {}", name, is_send ? "to" : "from", peer, size());
  LAMINA_CHECK(tag >= 0, "tag {}", tag);
  const int64_t num_bytes = view.num_bytes();
  if (num_bytes == 0) return {};
  if (peer == rank()) return to_self(is_send, view, tag, stream);
  if (is_send) bytes_sent_ += num_bytes;
  auto operation =
      make_operation(fmt::format("{} of {} bytes {} {} with tag {}", name, num_bytes, is_send ? "to" : "from",
                                 name_of_rank(peer), tag),
                     name_of_rank(peer), stream, [view, num_bytes, is_send](ncclComm_t comm, Stream& queue) {
                       const auto cuda_stream = static_cast<cudaStream_t>(queue.state()->handle());
                       if (is_send) {
                         check(ncclSend(view.data, extent(num_bytes), ncclInt8, 1, comm, cuda_stream), comm, "send");
                       } else {
                         check(ncclRecv(view.data, extent(num_bytes), ncclInt8, 0, comm, cuda_stream), comm, "recv");
                       }
                     });
  return start(channel(is_send, peer, tag), std::move(operation), stream);
}

Request NcclCommunicator::send(TensorView view, int destination, int tag, Stream& stream) {
  if (on_host({&view}, stream, "send")) return host_->send(view, destination, tag, stream);
  return point_to_point(true, view, destination, tag, stream);
}

Request NcclCommunicator::recv(TensorView view, int source, int tag, Stream& stream) {
  if (on_host({&view}, stream, "recv")) return host_->recv(view, source, tag, stream);
  return point_to_point(false, view, source, tag, stream);
}

Request NcclCommunicator::all_reduce(TensorView inout, ReduceOp op, Stream& stream) {
  if (on_host({&inout}, stream, "all_reduce")) return host_->all_reduce(inout, op, stream);
  const int64_t count = inout.num_elements(), num_bytes = inout.num_bytes();
  const ncclDataType_t type = type_of(inout.dtype);
  if (size() == 1 || count == 0) return {};
  if (num_bytes <= state_->options().small_all_reduce_bytes) {
    bytes_sent_ += (size() - 1) * num_bytes;
  } else {  // the others' parts to them, then the own part to everyone
    const int64_t own = (count * (rank() + 1) / size() - count * rank() / size()) * size_of(inout.dtype);
    bytes_sent_ += num_bytes - own + (size() - 1) * own;
  }
  return collective("all_reduce", num_bytes, stream, [=](ncclComm_t comm, Stream& queue) {
    check(ncclAllReduce(inout.data, inout.data, extent(count), type, operation_of(op), comm,
                        static_cast<cudaStream_t>(queue.state()->handle())),
          comm, "all_reduce");
  });
}

Request NcclCommunicator::reduce_scatter(TensorView in, TensorView out, ReduceOp op, Stream& stream) {
  if (on_host({&in, &out}, stream, "reduce_scatter")) return host_->reduce_scatter(in, out, op, stream);
  LAMINA_CHECK(in.dtype == out.dtype && in.num_elements() == out.num_elements() * size(),
               "reduce_scatter of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  const ncclDataType_t type = type_of(in.dtype);
  if (out.num_elements() == 0) return {};
  if (size() == 1) {
    if (in.data != out.data) cuda::copy(out.data, in.data, in.num_bytes(), stream);
    return {};
  }
  bytes_sent_ += (size() - 1) * out.num_bytes();
  return collective("reduce_scatter", in.num_bytes(), stream, [=](ncclComm_t comm, Stream& queue) {
    check(ncclReduceScatter(in.data, out.data, extent(out.num_elements()), type, operation_of(op), comm,
                            static_cast<cudaStream_t>(queue.state()->handle())),
          comm, "reduce_scatter");
  });
}

Request NcclCommunicator::all_gather(TensorView in, TensorView out, Stream& stream) {
  if (on_host({&in, &out}, stream, "all_gather")) return host_->all_gather(in, out, stream);
  LAMINA_CHECK(in.dtype == out.dtype && out.num_elements() == in.num_elements() * size(),
               "all_gather of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  if (in.num_elements() == 0) return {};
  if (size() == 1) {
    if (in.data != out.data) cuda::copy(out.data, in.data, in.num_bytes(), stream);
    return {};
  }
  bytes_sent_ += (size() - 1) * in.num_bytes();
  return collective("all_gather", out.num_bytes(), stream, [=](ncclComm_t comm, Stream& queue) {
    check(ncclAllGather(in.data, out.data, extent(in.num_bytes()), ncclInt8, comm,
                        static_cast<cudaStream_t>(queue.state()->handle())),
          comm, "all_gather");
  });
}

Request NcclCommunicator::broadcast(TensorView inout, int root, Stream& stream) {
  if (on_host({&inout}, stream, "broadcast")) return host_->broadcast(inout, root, stream);
  LAMINA_CHECK(root >= 0 && root < size(), "broadcast from rank {} of {}", root, size());
  if (size() == 1 || inout.num_elements() == 0) return {};
  const BinomialNode node = binomial_node((rank() - root + size()) % size(), size());
  bytes_sent_ += static_cast<int64_t>(node.children.size()) * inout.num_bytes();
  return collective("broadcast", inout.num_bytes(), stream, [=](ncclComm_t comm, Stream& queue) {
    check(ncclBroadcast(inout.data, inout.data, extent(inout.num_bytes()), ncclInt8, root, comm,
                        static_cast<cudaStream_t>(queue.state()->handle())),
          comm, "broadcast");
  });
}

Request NcclCommunicator::exchange(const char* name, const TensorView& in, std::vector<int64_t> send_counts,
                                   const TensorView& out, std::vector<int64_t> receive_counts, Stream& stream) {
  const int64_t width = size_of(in.dtype);
  const int64_t total = std::accumulate(send_counts.begin(), send_counts.end(), int64_t{0});
  const int self = rank(), num_ranks = size();
  if (num_ranks == 1) {
    if (total > 0) cuda::copy(out.data, in.data, total * width, stream);
    return {};
  }
  bytes_sent_ += (total - send_counts[extent(self)]) * width;
  return collective(name, in.num_bytes(), stream,
                    [in, out, width, self, num_ranks, send_counts = std::move(send_counts),
                     receive_counts = std::move(receive_counts)](ncclComm_t comm, Stream& queue) {
                      const auto cuda_stream = static_cast<cudaStream_t>(queue.state()->handle());
                      const auto* from = static_cast<const uint8_t*>(in.data);
                      auto* to = static_cast<uint8_t*>(out.data);
                      check(ncclGroupStart(), comm, "exchange");
                      const uint8_t* own_from = nullptr;
                      uint8_t* own_to = nullptr;
                      for (int r = 0; r < num_ranks; ++r) {
                        const int64_t sent = send_counts[extent(r)] * width;
                        const int64_t received = receive_counts[extent(r)] * width;
                        if (r == self) {
                          own_from = from;
                          own_to = to;
                        } else {
                          if (sent > 0)
                            check(ncclSend(from, extent(sent), ncclInt8, r, comm, cuda_stream), comm, "exchange");
                          if (received > 0)
                            check(ncclRecv(to, extent(received), ncclInt8, r, comm, cuda_stream), comm, "exchange");
                        }
                        if (from != nullptr) from += sent;
                        if (to != nullptr) to += received;
                      }
                      check(ncclGroupEnd(), comm, "exchange");
                      if (send_counts[extent(self)] > 0)
                        cuda::copy(own_to, own_from, send_counts[extent(self)] * width, queue);
                    });
}

Request NcclCommunicator::all_to_all(TensorView in, TensorView out, Stream& stream) {
  if (on_host({&in, &out}, stream, "all_to_all")) return host_->all_to_all(in, out, stream);
  LAMINA_CHECK(in.dtype == out.dtype && in.num_elements() == out.num_elements() && in.num_elements() % size() == 0,
               "all_to_all of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  if (in.num_elements() == 0) return {};
  LAMINA_CHECK(in.data != out.data, "all_to_all in place");
  const std::vector<int64_t> counts(extent(size()), in.num_elements() / size());
  return exchange("all_to_all", in, counts, out, counts, stream);
}

Request NcclCommunicator::all_to_all_v(TensorView in, std::span<const int64_t> send_counts, TensorView out,
                                       std::span<const int64_t> receive_counts, Stream& stream) {
  if (on_host({&in, &out}, stream, "all_to_all_v"))
    return host_->all_to_all_v(in, send_counts, out, receive_counts, stream);
  const auto check_counts = [&](const TensorView& view, std::span<const int64_t> counts, const char* direction) {
    LAMINA_CHECK(counts.size() == extent(size()), "all_to_all_v {} {} counts for {} ranks", direction, counts.size(),
                 size());
    LAMINA_CHECK(std::all_of(counts.begin(), counts.end(), [](int64_t count) { return count >= 0; }) &&
                     std::accumulate(counts.begin(), counts.end(), int64_t{0}) == view.num_elements(),
                 "all_to_all_v {} all ranks: the counts are not those of {}", direction, view.to_string());
  };
  check_counts(in, send_counts, "to");
  check_counts(out, receive_counts, "from");
  LAMINA_CHECK(in.dtype == out.dtype, "all_to_all_v of {} into {}", in.to_string(), out.to_string());
  LAMINA_CHECK(in.data != out.data || in.num_elements() == 0 || out.num_elements() == 0, "all_to_all_v in place");
  LAMINA_CHECK(send_counts[extent(rank())] == receive_counts[extent(rank())],
               "all_to_all_v: rank {} sends {} elements to itself and expects {}", rank(), send_counts[extent(rank())],
               receive_counts[extent(rank())]);
  // Also without any element of this rank's: the others' may need its half of the group's connection.
  return exchange("all_to_all_v", in, {send_counts.begin(), send_counts.end()}, out,
                  {receive_counts.begin(), receive_counts.end()}, stream);
}

std::string version_text(int version) {  // 22803: 2.28.3
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

}  // namespace
}  // namespace nccl

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host, Device device,
                                                     const NcclOptions& options) {
  LAMINA_CHECK(host != nullptr);
  LAMINA_CHECK(device.kind == DeviceKind::cuda, "NCCL without a GPU");
  // Connections are made when a communicator is, not at the first operation of each kind, when kernels may wait for each other.
  static const bool prepared = setenv("NCCL_RUNTIME_CONNECT", "0", 0) == 0;
  LAMINA_CHECK(prepared);
  const int rank = host->rank();
  return std::make_unique<nccl::NcclCommunicator>(std::move(host),
                                                  std::make_shared<nccl::NcclState>(device, options, rank));
}

std::string nccl_built_version() {
  return nccl::version_text(NCCL_VERSION_CODE);
}

std::string nccl_loaded_version() {
  int version = 0;
  nccl::check(ncclGetVersion(&version), nullptr, "asking for its version");
  return nccl::version_text(version);
}

}  // namespace lamina::comm
