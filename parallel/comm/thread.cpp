#include "parallel/comm/thread.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "core/base/log.h"

#include <cstring>

namespace lamina::comm {

namespace {

enum class TransferState { idle, posted, matched, done, mismatched };

struct Transfer {
  std::atomic<TransferState> state{TransferState::idle};
  void* data = nullptr;
  int64_t num_bytes = 0;
  int64_t peer_bytes = 0;  // what the other side gave, when it differs
  int source = 0;
  int destination = 0;
  int channel = 0;
  int64_t tag = 0;
};

// Tells a sleeping rank that one of its transfers changed.
class Signal {
 public:
  uint64_t count() const { return count_.load(std::memory_order_acquire); }
  void notify() {
    {
      const std::lock_guard lock(mutex_);
      count_.fetch_add(1, std::memory_order_release);
    }
    changed_.notify_all();
  }
  void wait_beyond(uint64_t seen) {
    // The limit only bounds how late a timeout is noticed.
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::milliseconds(50), [&] { return count() != seen; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<uint64_t> count_{0};
};

// Shared by all groups of one job.
struct ThreadWorld {
  explicit ThreadWorld(int size) : signals(static_cast<size_t>(size)) {}

  void abort(const std::string& why) {
    {
      const std::lock_guard lock(mutex);
      if (aborted.load(std::memory_order_relaxed)) return;
      reason = why;
      aborted.store(true, std::memory_order_release);
    }
    for (Signal& signal : signals) signal.notify();
  }
  void throw_if_aborted() const {
    if (aborted.load(std::memory_order_acquire)) throw AbortedError("{}", reason);
  }

  std::deque<Signal> signals;  // [world rank]
  std::atomic<bool> aborted{false};
  std::mutex mutex;
  std::string reason;  // written once, before `aborted`
};

// What was posted for one destination and not matched yet, in order.
struct Mailbox {
  std::mutex mutex;
  std::vector<Transfer*> sends;
  std::vector<Transfer*> receives;
};

struct ThreadGroup {
  ThreadGroup(std::shared_ptr<ThreadWorld> the_world, std::vector<int> ranks)
      : world(std::move(the_world)), world_ranks(std::move(ranks)), mailboxes(world_ranks.size()) {}

  Signal& signal(int rank) { return world->signals[static_cast<size_t>(world_ranks[static_cast<size_t>(rank)])]; }

  std::shared_ptr<ThreadWorld> world;
  std::vector<int> world_ranks;
  std::deque<Mailbox> mailboxes;  // [destination]

  // Sub-groups under construction: the first member to come makes the group, the last one takes it off the list.
  struct Nascent {
    std::shared_ptr<ThreadGroup> group;
    size_t num_waiting;
  };
  std::mutex split_mutex;
  std::map<std::pair<int64_t, int>, Nascent> nascent;  // (number of the split, color)
};

class ThreadCommunicator final : public P2PCommunicator {
 public:
  ThreadCommunicator(int rank, std::shared_ptr<ThreadGroup> group, std::shared_ptr<RankState> state)
      : P2PCommunicator(rank, group->world_ranks, std::move(state)), group_(std::move(group)) {}

  [[noreturn]] void abort(const std::string& reason) override {
    const std::string message = fmt::format("rank {} aborted the job: {}", world_rank(), reason);
    log::error("{}", message);
    group_->world->abort(message);
    throw AbortedError(message);
  }

 protected:
  int start_send(const void* data, int64_t num_bytes, const Message& message) override {
    // Only ever read: the direction is fixed by the list the transfer is posted in.
    return start(const_cast<void*>(data), num_bytes, rank(), message.peer, message, true);
  }
  int start_recv(void* data, int64_t num_bytes, const Message& message) override {
    return start(data, num_bytes, message.peer, rank(), message, false);
  }
  bool transfer_done(int id) override;
  void cancel_transfer(int id) noexcept override;
  int64_t max_tag(Channel) const override { return INT32_MAX; }

  uint64_t event_count() override { return group_->signal(rank()).count(); }
  void wait_for_event(uint64_t seen, double waited) override {
    if (waited < 5e-6) {  // ranks often outnumber cores
      std::this_thread::yield();
    } else {
      group_->signal(rank()).wait_beyond(seen);
    }
  }
  void throw_if_aborted() const override { group_->world->throw_if_aborted(); }
  std::unique_ptr<Communicator> make_subgroup(const std::vector<int>& members, int color_index) override;

 private:
  int start(void* data, int64_t num_bytes, int source, int destination, const Message& message, bool is_send);
  int free_slot();

  std::shared_ptr<ThreadGroup> group_;
  std::deque<Transfer> transfers_;  // addresses stay: mailboxes point here
  std::vector<int> free_;
  int64_t num_splits_ = 0;
};

int ThreadCommunicator::free_slot() {
  if (free_.empty()) {
    transfers_.emplace_back();
    return static_cast<int>(transfers_.size()) - 1;
  }
  const int id = free_.back();
  free_.pop_back();
  return id;
}

// Takes the oldest entry that matches out of the list.
Transfer* take_match(std::vector<Transfer*>& posted, const Transfer& wanted) {
  for (auto entry = posted.begin(); entry != posted.end(); ++entry) {
    Transfer* const candidate = *entry;
    if (candidate->source != wanted.source || candidate->channel != wanted.channel || candidate->tag != wanted.tag)
      continue;
    posted.erase(entry);
    return candidate;
  }
  return nullptr;
}

int ThreadCommunicator::start(void* data, int64_t num_bytes, int source, int destination, const Message& message,
                              bool is_send) {
  const int id = free_slot();
  Transfer& own = transfers_[static_cast<size_t>(id)];
  own.data = data;
  own.num_bytes = num_bytes;
  own.source = source;
  own.destination = destination;
  own.channel = static_cast<int>(message.channel);
  own.tag = message.tag;

  Mailbox& mailbox = group_->mailboxes[static_cast<size_t>(destination)];
  Transfer* other = nullptr;
  {
    const std::lock_guard lock(mailbox.mutex);
    other = take_match(is_send ? mailbox.receives : mailbox.sends, own);
    if (other == nullptr) {
      own.state.store(TransferState::posted, std::memory_order_relaxed);
      (is_send ? mailbox.sends : mailbox.receives).push_back(&own);
      return id;
    }
    other->state.store(TransferState::matched, std::memory_order_relaxed);
  }
  TransferState outcome = TransferState::done;
  if (own.num_bytes != other->num_bytes) {
    own.peer_bytes = other->num_bytes;
    other->peer_bytes = own.num_bytes;
    outcome = TransferState::mismatched;
  } else if (num_bytes > 0) {
    Transfer& receiver = is_send ? *other : own;
    const Transfer& sender = is_send ? own : *other;
    std::memcpy(receiver.data, sender.data, static_cast<size_t>(num_bytes));
  }
  own.state.store(outcome, std::memory_order_relaxed);
  // The other side may reuse its transfer as soon as this is stored.
  other->state.store(outcome, std::memory_order_release);
  group_->signal(message.peer).notify();
  return id;
}

bool ThreadCommunicator::transfer_done(int id) {
  const Transfer& transfer = transfers_[static_cast<size_t>(id)];
  const TransferState state_now = transfer.state.load(std::memory_order_acquire);
  if (state_now == TransferState::done) {
    free_.push_back(id);
    return true;
  }
  if (state_now == TransferState::mismatched) {
    const bool is_sender = transfer.source == rank();
    const int64_t sent = is_sender ? transfer.num_bytes : transfer.peer_bytes;
    const int64_t expected = is_sender ? transfer.peer_bytes : transfer.num_bytes;
    LAMINA_CHECK(sent == expected, "rank {} of the group sent {} bytes where rank {} expects {} (tag {})",
                 transfer.source, sent, transfer.destination, expected, transfer.tag);
  }
  return false;
}

void ThreadCommunicator::cancel_transfer(int id) noexcept {
  Transfer& transfer = transfers_[static_cast<size_t>(id)];
  {
    Mailbox& mailbox = group_->mailboxes[static_cast<size_t>(transfer.destination)];
    const std::lock_guard lock(mailbox.mutex);
    if (transfer.state.load(std::memory_order_relaxed) == TransferState::posted) {
      std::erase(mailbox.sends, &transfer);
      std::erase(mailbox.receives, &transfer);
      transfer.state.store(TransferState::idle, std::memory_order_relaxed);
    }
  }
  // The peer is copying: it does not wait for anything, so this is short.
  while (transfer.state.load(std::memory_order_acquire) == TransferState::matched) std::this_thread::yield();
  free_.push_back(id);
}

std::unique_ptr<Communicator> ThreadCommunicator::make_subgroup(const std::vector<int>& members, int color_index) {
  const std::pair key{num_splits_++, color_index};
  std::shared_ptr<ThreadGroup> group;
  {
    const std::lock_guard lock(group_->split_mutex);
    auto found = group_->nascent.find(key);
    if (found == group_->nascent.end()) {
      std::vector<int> ranks;
      for (int member : members) ranks.push_back(world_ranks()[static_cast<size_t>(member)]);
      auto made = std::make_shared<ThreadGroup>(group_->world, std::move(ranks));
      found = group_->nascent.emplace(key, ThreadGroup::Nascent{std::move(made), members.size()}).first;
    }
    group = found->second.group;
    if (--found->second.num_waiting == 0) group_->nascent.erase(found);
  }
  const auto self = std::find(members.begin(), members.end(), rank());
  return std::make_unique<ThreadCommunicator>(static_cast<int>(self - members.begin()), std::move(group), state());
}

std::vector<std::unique_ptr<Communicator>> make_communicators(const std::shared_ptr<ThreadWorld>& world, int size,
                                                              const CommunicatorOptions& options) {
  std::vector<int> ranks;
  for (int r = 0; r < size; ++r) ranks.push_back(r);
  const auto group = std::make_shared<ThreadGroup>(world, std::move(ranks));
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int r = 0; r < size; ++r)
    communicators.push_back(std::make_unique<ThreadCommunicator>(r, group, std::make_shared<RankState>(options)));
  return communicators;
}

// Remembers the failure that came first, and prefers a cause to its consequences.
class FirstFailure {
 public:
  void record(int rank, std::exception_ptr failure, const std::string& what, bool is_consequence) {
    const std::lock_guard lock(mutex_);
    if (failure_ && (is_consequence || !is_consequence_)) return;
    failure_ = std::move(failure);
    what_ = what;
    rank_ = rank;
    is_consequence_ = is_consequence;
  }
  void rethrow() const {
    if (!failure_) return;
    const std::string message = fmt::format("rank {}: {}", rank_, what_);
    try {
      std::rethrow_exception(failure_);
    } catch (const AbortedError&) {
      throw AbortedError(message);
    } catch (const std::logic_error&) {
      throw InternalError(message);
    } catch (...) {
      throw Error(message);
    }
  }

 private:
  std::mutex mutex_;
  std::exception_ptr failure_;
  std::string what_;
  int rank_ = -1;
  bool is_consequence_ = false;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size, const CommunicatorOptions& options) {
  LAMINA_CHECK(size >= 1, "a group of {} ranks", size);
  return make_communicators(std::make_shared<ThreadWorld>(size), size, options);
}

std::unique_ptr<Communicator> make_self_communicator(const CommunicatorOptions& options) {
  return std::move(make_thread_communicators(1, options).front());
}

void run_threads(int size, const std::function<void(Communicator&)>& body, const CommunicatorOptions& options) {
  LAMINA_CHECK(size >= 1, "a group of {} ranks", size);
  const auto world = std::make_shared<ThreadWorld>(size);
  std::vector<std::unique_ptr<Communicator>> communicators = make_communicators(world, size, options);
  FirstFailure failure;
  const auto failed = [&](int rank, const std::string& what, bool is_consequence) {
    failure.record(rank, std::current_exception(), what, is_consequence);
    world->abort(fmt::format("rank {} failed: {}", rank, what));
  };
  const auto run = [&](int rank) {
    try {
      body(*communicators[static_cast<size_t>(rank)]);
    } catch (const AbortedError& error) {
      failed(rank, error.what(), true);
    } catch (const std::exception& error) {
      failed(rank, error.what(), false);
    } catch (...) {
      failed(rank, "an exception of unknown type", false);
    }
  };
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) threads.emplace_back(run, r);
  for (std::thread& thread : threads) thread.join();
  failure.rethrow();
}

}  // namespace lamina::comm
