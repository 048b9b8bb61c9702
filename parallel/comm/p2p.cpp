#include "parallel/comm/p2p.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "parallel/comm/collectives.h"

namespace lamina::comm {

// ---- RankState ----

void RankState::remove(Operation* operation) {
  const auto found = std::find(active_.begin(), active_.end(), operation);
  if (found == active_.end()) return;
  active_.erase(found);  // keeps the order of issue: the oldest operation is advanced first
}

void RankState::progress() {
  try {
    for (size_t i = 0; i < active_.size();) {
      Operation* const operation = active_[i];
      operation->step();
      if (i < active_.size() && active_[i] == operation) ++i;  // else it finished and left
    }
  } catch (const std::exception& failure) {
    fail(failure.what());
    throw;
  }
}

void RankState::fail(const std::string& reason) {
  if (failure_.empty()) failure_ = reason;
}

void RankState::throw_if_failed() const {
  if (!failure_.empty()) throw AbortedError("communication failed before: {}", failure_);
}

std::string rank_and_host(int rank, const std::vector<std::string>& hosts) {
  const auto index = static_cast<size_t>(rank);
  return index < hosts.size() ? fmt::format("{} ({})", rank, hosts[index]) : fmt::format("{}", rank);
}

int64_t scratch_class(int64_t num_bytes) {
  constexpr uint64_t smallest = 4096;
  const uint64_t wanted = std::max(smallest, static_cast<uint64_t>(num_bytes));
  const uint64_t step = std::max<uint64_t>(smallest, std::bit_floor(wanted) / 8);
  return static_cast<int64_t>((wanted + step - 1) / step * step);
}

Buffer RankState::take_scratch(int64_t num_bytes) {
  const int64_t wanted = scratch_class(num_bytes);
  for (size_t i = 0; i < free_scratch_.size(); ++i) {
    if (free_scratch_[i].num_bytes() != wanted) continue;
    std::swap(free_scratch_[i], free_scratch_.back());
    Buffer buffer = std::move(free_scratch_.back());
    free_scratch_.pop_back();
    return buffer;
  }
  return Buffer(wanted, Device{}, options_.ledger, "communication");
}

void RankState::give_back(Buffer buffer) {
  if (buffer.data() != nullptr) free_scratch_.push_back(std::move(buffer));
}

// ---- Operation ----

Operation::Operation(P2PCommunicator& comm, const char* name, int64_t num_bytes)
    : comm_(comm), name_(name), num_bytes_(num_bytes) {}

Operation::~Operation() {
  if (!active_) return;
  for (size_t i = next_; i < transfers_.size(); ++i) comm_.cancel_transfer(transfers_[i].id);
  comm_.state_->remove(this);
  comm_.state_->fail(fmt::format("{} was given up", name_));
  comm_.state_->give_back(std::move(scratch_));
}

P2PCommunicator::Message Operation::message(int peer) const {
  if (user_tag_ >= 0) return {peer, P2PCommunicator::Channel::user, user_tag_};
  const auto channel = P2PCommunicator::Channel::collective;
  return {peer, channel, sequence_ % (comm_.max_tag(channel) + 1)};
}

// The last piece is shorter than the limit, if need be empty: whatever the two sides' sizes, a difference meets in a piece.
void Operation::send(const void* data, int64_t num_bytes, int peer) {
  const uint8_t* bytes = static_cast<const uint8_t*>(data);
  if (peer != rank()) comm_.bytes_sent_ += num_bytes;
  for (int64_t piece = options().max_message_bytes; piece == options().max_message_bytes;) {
    piece = std::min(num_bytes, options().max_message_bytes);
    transfers_.push_back({comm_.start_send(bytes, piece, message(peer)), peer, true});
    bytes += piece;
    num_bytes -= piece;
  }
}

void Operation::recv(void* data, int64_t num_bytes, int peer) {
  uint8_t* bytes = static_cast<uint8_t*>(data);
  for (int64_t piece = options().max_message_bytes; piece == options().max_message_bytes;) {
    piece = std::min(num_bytes, options().max_message_bytes);
    transfers_.push_back({comm_.start_recv(bytes, piece, message(peer)), peer, false});
    bytes += piece;
    num_bytes -= piece;
  }
}

uint8_t* Operation::scratch(int64_t num_bytes) {
  LAMINA_CHECK(scratch_.data() == nullptr);
  scratch_ = comm_.state_->take_scratch(num_bytes);
  return static_cast<uint8_t*>(scratch_.data());
}

void Operation::step() {
  while (!done_) {
    // In order, stopping at the first that is pending: all are needed anyway, and a poll stays cheap.
    for (; next_ < transfers_.size(); ++next_)
      if (!comm_.transfer_done(transfers_[next_].id)) return;
    transfers_.clear();
    next_ = 0;
    if (advance()) finish();
  }
}

void Operation::finish() {
  done_ = true;
  active_ = false;
  comm_.state_->remove(this);
  comm_.state_->give_back(std::move(scratch_));
}

bool Operation::test() {
  if (done_) return true;
  comm_.throw_if_aborted();  // first: its reason is the cause of a failure of our own
  comm_.state_->throw_if_failed();
  comm_.state_->progress();
  return done_;
}

void Operation::wait() {
  const Clock::time_point start = Clock::now();
  double limit = options().timeout_seconds;
  for (;;) {
    const uint64_t seen = comm_.event_count();
    if (test()) return;
    const double seconds = seconds_since(start);
    if (seconds > limit) {
      const std::string message = overdue(seconds);
      if (comm_.state_->is_patient()) {
        log::warning("{}; going on to wait, another rank may be busy with files", message);
        limit += options().timeout_seconds;
        continue;
      }
      comm_.state_->fail(message);
      throw Error(message);
    }
    comm_.wait_for_event(seen, seconds);
  }
}

// One line for people: which operation, and which ranks of the job it misses.
std::string Operation::overdue(double seconds) {
  std::vector<Transfer> pending;
  for (size_t i = next_; i < transfers_.size(); ++i)
    if (!comm_.transfer_done(transfers_[i].id)) pending.push_back(transfers_[i]);
  transfers_ = std::move(pending);
  next_ = 0;
  std::vector<int> missing_senders, missing_receivers;
  for (const Transfer& transfer : transfers_) {
    auto& list = transfer.is_send ? missing_receivers : missing_senders;
    list.push_back(comm_.world_ranks_[static_cast<size_t>(transfer.peer)]);
  }
  const auto names = [this](std::vector<int>& ranks) {
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    std::string text;
    for (int rank : ranks) text += fmt::format("{}{}", text.empty() ? "" : ", ", rank_and_host(rank, options().hosts));
    return text.empty() ? std::string("none") : text;
  };
  const std::string identity =
      user_tag_ >= 0 ? fmt::format("{} with tag {}", name_, user_tag_) : fmt::format("{} #{}", name_, sequence_);
  return fmt::format(
      "rank {}: {} ({} bytes, group of {}) is not finished after {:.1f} s; did not arrive from ranks: {}; "
      "was not taken by ranks: {}",
      rank_and_host(comm_.world_rank(), options().hosts), identity, num_bytes_, size(), seconds, names(missing_senders),
      names(missing_receivers));
}

// ---- P2PCommunicator ----

P2PCommunicator::P2PCommunicator(int rank, std::vector<int> world_ranks, std::shared_ptr<RankState> state)
    : rank_(rank), world_ranks_(std::move(world_ranks)), state_(std::move(state)) {}

void P2PCommunicator::check_view(const TensorView& view, const char* operation) const {
  LAMINA_CHECK(view.is_contiguous(), "{} of {}, which is not contiguous", operation, view.to_string());
  LAMINA_CHECK(view.device.kind == DeviceKind::cpu, "{} of a view that is not in host memory", operation);
  LAMINA_CHECK(view.data != nullptr || view.num_elements() == 0, "{} of an empty view", operation);
}

Request P2PCommunicator::issue(std::unique_ptr<Operation> operation) {
  throw_if_aborted();
  state_->throw_if_failed();
  if (operation->user_tag_ < 0) operation->sequence_ = num_issued_++;
  operation->active_ = true;
  state_->add(operation.get());
  try {
    operation->step();
  } catch (const std::exception& failure) {
    state_->fail(failure.what());
    throw;
  }
  if (operation->done()) return Request();
  return Request(std::move(operation));
}

Request P2PCommunicator::send(TensorView view, int destination, int tag, Stream&) {
  check_view(view, "send");
  LAMINA_CHECK(destination >= 0 && destination < size(), "send to rank {} of {}", destination, size());
  LAMINA_CHECK(tag >= 0 && tag <= max_tag(Channel::user), "tag {} of at most {}", tag, max_tag(Channel::user));
  return issue(std::make_unique<PointToPoint>(*this, true, view, destination, tag));
}

Request P2PCommunicator::recv(TensorView view, int source, int tag, Stream&) {
  check_view(view, "recv");
  LAMINA_CHECK(source >= 0 && source < size(), "recv from rank {} of {}", source, size());
  LAMINA_CHECK(tag >= 0 && tag <= max_tag(Channel::user), "tag {} of at most {}", tag, max_tag(Channel::user));
  return issue(std::make_unique<PointToPoint>(*this, false, view, source, tag));
}

Request P2PCommunicator::all_reduce(TensorView inout, ReduceOp op, Stream&) {
  check_view(inout, "all_reduce");
  if (size() == 1) return Request();
  const int64_t num_bytes = inout.num_bytes();
  if (num_bytes <= state_->options().small_all_reduce_bytes) {
    if (size() <= max_direct_ranks) return issue(std::make_unique<AllReduceDirect>(*this, "all_reduce", inout, op));
    if (num_bytes * size() <= max_tree_gather_bytes)
      return issue(std::make_unique<AllReduceTree>(*this, "all_reduce", inout, op));
  }
  return issue(std::make_unique<AllReduceScattered>(*this, "all_reduce", inout, op));
}

Request P2PCommunicator::reduce_scatter(TensorView in, TensorView out, ReduceOp op, Stream&) {
  check_view(in, "reduce_scatter");
  check_view(out, "reduce_scatter");
  LAMINA_CHECK(in.dtype == out.dtype && in.num_elements() == out.num_elements() * size(),
               "reduce_scatter of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  return issue(std::make_unique<ReduceScatter>(*this, in, out, op));
}

Request P2PCommunicator::all_gather(TensorView in, TensorView out, Stream&) {
  check_view(in, "all_gather");
  check_view(out, "all_gather");
  LAMINA_CHECK(in.dtype == out.dtype && out.num_elements() == in.num_elements() * size(),
               "all_gather of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  return issue(std::make_unique<Exchange>(*this, "all_gather", in, Parts::same(in.num_elements(), size()), out,
                                          Parts::equal(out.num_elements(), size())));
}

Request P2PCommunicator::broadcast(TensorView inout, int root, Stream&) {
  check_view(inout, "broadcast");
  LAMINA_CHECK(root >= 0 && root < size(), "broadcast from rank {} of {}", root, size());
  return issue(std::make_unique<Broadcast>(*this, inout, root));
}

Request P2PCommunicator::all_to_all(TensorView in, TensorView out, Stream&) {
  check_view(in, "all_to_all");
  check_view(out, "all_to_all");
  LAMINA_CHECK(in.dtype == out.dtype && in.num_elements() == out.num_elements() && in.num_elements() % size() == 0,
               "all_to_all of {} into {} over {} ranks", in.to_string(), out.to_string(), size());
  LAMINA_CHECK(in.data != out.data || in.num_elements() == 0, "all_to_all in place");
  const Parts parts = Parts::equal(in.num_elements(), size());
  return issue(std::make_unique<Exchange>(*this, "all_to_all", in, parts, out, parts));
}

void P2PCommunicator::check_counts(const TensorView& view, std::span<const int64_t> counts,
                                   const char* direction) const {
  LAMINA_CHECK(counts.size() == world_ranks_.size(), "all_to_all_v {} {} counts for {} ranks", direction, counts.size(),
               size());
  int64_t sum = 0;
  for (size_t r = 0; r < counts.size(); ++r) {
    LAMINA_CHECK(counts[r] >= 0, "all_to_all_v {} rank {}: {} elements", direction, r, counts[r]);
    sum += counts[r];
  }
  LAMINA_CHECK(sum == view.num_elements(), "all_to_all_v {} all ranks: {} elements in a view of {}", direction, sum,
               view.to_string());
}

Request P2PCommunicator::all_to_all_v(TensorView in, std::span<const int64_t> send_counts, TensorView out,
                                      std::span<const int64_t> receive_counts, Stream&) {
  check_view(in, "all_to_all_v");
  check_view(out, "all_to_all_v");
  check_counts(in, send_counts, "to");
  check_counts(out, receive_counts, "from");
  LAMINA_CHECK(in.dtype == out.dtype, "all_to_all_v of {} into {}", in.to_string(), out.to_string());
  LAMINA_CHECK(in.data != out.data || in.num_elements() == 0 || out.num_elements() == 0, "all_to_all_v in place");
  const auto own = static_cast<size_t>(rank());
  LAMINA_CHECK(send_counts[own] == receive_counts[own],
               "all_to_all_v: rank {} sends {} elements to itself and expects {}", own, send_counts[own],
               receive_counts[own]);
  return issue(std::make_unique<Exchange>(*this, "all_to_all_v", in, Parts::consecutive(send_counts), out,
                                          Parts::consecutive(receive_counts)));
}

void P2PCommunicator::barrier() {
  if (size() == 1) return;
  const TensorView nothing(nullptr, DType::i32, {0});
  if (size() <= max_direct_ranks) {
    issue(std::make_unique<AllReduceDirect>(*this, "barrier", nothing, ReduceOp::sum)).wait();
  } else {
    issue(std::make_unique<AllReduceTree>(*this, "barrier", nothing, ReduceOp::sum)).wait();
  }
}

void P2PCommunicator::progress() {
  throw_if_aborted();
  state_->throw_if_failed();
  state_->progress();
}

std::unique_ptr<Communicator> P2PCommunicator::split(int color, int key) {
  const int64_t bytes_before = bytes_sent_;  // housekeeping is not payload
  int32_t own[2] = {color, key};
  std::vector<int32_t> all(static_cast<size_t>(2 * size()));
  Stream stream;
  // Also makes sure that nobody blocks inside the transport while another rank still needs its progress.
  all_gather(TensorView(own, DType::i32, {2}), TensorView(all.data(), DType::i32, {2 * size()}), stream).wait();
  bytes_sent_ = bytes_before;

  std::map<int, std::vector<std::pair<int, int>>> groups;  // color -> (key, rank)
  for (int r = 0; r < size(); ++r)
    groups[all[2 * static_cast<size_t>(r)]].emplace_back(all[2 * static_cast<size_t>(r) + 1], r);
  auto& group = groups[color];
  std::sort(group.begin(), group.end());
  std::vector<int> members;
  for (const auto& [member_key, member] : group) members.push_back(member);
  const int color_index = static_cast<int>(std::distance(groups.begin(), groups.find(color)));
  return make_subgroup(members, color_index);
}

int64_t P2PCommunicator::take_bytes_sent() {
  return std::exchange(bytes_sent_, 0);
}

}  // namespace lamina::comm
