// Every collective of Lamina, written once on top of non-blocking point-to-point transfers, so that ranks as threads and
// ranks as processes give the same bits. A transport (threads, MPI) only moves bytes.
//
// Operations are state machines; no helper threads. Any test() or wait() advances every pending operation of this rank,
// also those of other groups made by split(), so ranks may wait for their operations in different orders.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/device/buffer.h"
#include "parallel/comm/communicator.h"

namespace lamina::comm {

struct CommunicatorOptions {
  double timeout_seconds = 600;                  // a wait() that lasts longer throws and names the peers it misses
  int64_t small_all_reduce_bytes = 64 << 10;     // up to here all_reduce sends everything to everyone
  int64_t max_message_bytes = int64_t{1} << 30;  // larger transfers are split: MPI counts are int
  MemoryLedger* ledger = nullptr;                // books the scratch memory; must outlive the communicators
  std::vector<std::string> hosts;                // of the ranks of the job, for messages; may be empty
};

// "3 (node-b)", or "3" where the hosts are not known.
std::string rank_and_host(int rank, const std::vector<std::string>& hosts);

// Another rank (or this one) took the job down: a consequence of a failure, not its cause.
class AbortedError : public Error {
 public:
  using Error::Error;
};

class Operation;

// The size of reusable memory that serves so many bytes. Classes an eighth of a power of two apart: few distinct sizes, little
// waste.
int64_t scratch_class(int64_t num_bytes);

// What the groups of one rank share: the operations in flight and reusable receive memory.
class RankState {
 public:
  explicit RankState(const CommunicatorOptions& options) : options_(options) {}

  const CommunicatorOptions& options() const { return options_; }
  void add(Operation* operation) { active_.push_back(operation); }
  void remove(Operation* operation);
  void progress();  // advances every operation in flight

  // After a failure some transfers are in an unknown state; nothing may be issued any more.
  void fail(const std::string& reason);
  void throw_if_failed() const;

  bool set_patient(bool patient) { return std::exchange(patient_, patient); }
  bool is_patient() const { return patient_; }

  Buffer take_scratch(int64_t num_bytes);
  void give_back(Buffer buffer);

 private:
  CommunicatorOptions options_;
  std::vector<Operation*> active_;
  std::vector<Buffer> free_scratch_;
  std::string failure_;
  bool patient_ = false;
};

// Operations must not outlive the communicator that issued them. One communicator belongs to one thread.
class P2PCommunicator : public Communicator {
 public:
  int rank() const final { return rank_; }
  int size() const final { return static_cast<int>(world_ranks_.size()); }

  Request send(TensorView view, int destination, int tag, Stream& stream) final;
  Request recv(TensorView view, int source, int tag, Stream& stream) final;
  Request all_reduce(TensorView inout, ReduceOp op, Stream& stream) final;
  Request reduce_scatter(TensorView in, TensorView out, ReduceOp op, Stream& stream) final;
  Request all_gather(TensorView in, TensorView out, Stream& stream) final;
  Request broadcast(TensorView inout, int root, Stream& stream) final;
  Request all_to_all(TensorView in, TensorView out, Stream& stream) final;
  Request all_to_all_v(TensorView in, std::span<const int64_t> send_counts, TensorView out,
                       std::span<const int64_t> receive_counts, Stream& stream) final;
  void barrier() final;
  void progress() final;
  bool set_patient(bool patient) final { return state_->set_patient(patient); }
  std::unique_ptr<Communicator> split(int color, int key) final;
  int64_t take_bytes_sent() final;

  const std::vector<int>& world_ranks() const { return world_ranks_; }  // of the members of this group
  int world_rank() const { return world_ranks_[static_cast<size_t>(rank_)]; }

 protected:
  // User tags and the sequence numbers of collectives live in different spaces.
  enum class Channel : uint8_t { user, collective };
  struct Message {
    int peer;
    Channel channel;
    int64_t tag;
  };

  P2PCommunicator(int rank, std::vector<int> world_ranks, std::shared_ptr<RankState> state);

  // Transfers between the same two ranks with the same channel and tag match in the order they were started. Both sides
  // must agree on the number of bytes, at most max_message_bytes. The identifier is forgotten once transfer_done()
  // returned true or cancel_transfer() was called.
  virtual int start_send(const void* data, int64_t num_bytes, const Message& message) = 0;
  virtual int start_recv(void* data, int64_t num_bytes, const Message& message) = 0;
  virtual bool transfer_done(int transfer) = 0;
  virtual void cancel_transfer(int transfer) noexcept = 0;  // after it the memory is not touched any more
  virtual int64_t max_tag(Channel channel) const = 0;

  // Sleeping: read event_count(), test, and if nothing is done wait for a newer event or a short while. `waited`: seconds since the
  // wait began.
  virtual uint64_t event_count() { return 0; }
  virtual void wait_for_event(uint64_t seen, double waited) = 0;
  virtual void throw_if_aborted() const {}

  // The ranks of this group that share a color, as positions in this group, ordered. Collective.
  virtual std::unique_ptr<Communicator> make_subgroup(const std::vector<int>& members, int color_index) = 0;

  const std::shared_ptr<RankState>& state() const { return state_; }

 private:
  friend class Operation;

  Request issue(std::unique_ptr<Operation> operation);
  void check_view(const TensorView& view, const char* operation) const;
  void check_counts(const TensorView& view, std::span<const int64_t> counts, const char* direction) const;

  int rank_;
  std::vector<int> world_ranks_;
  std::shared_ptr<RankState> state_;
  int64_t num_issued_ = 0;  // collectives; gives each its tag
  int64_t bytes_sent_ = 0;
};

// One operation in flight: phases of transfers. advance() runs at the start and whenever all transfers of a phase are done.
class Operation : public Request::State {
 public:
  Operation(P2PCommunicator& comm, const char* name, int64_t num_bytes);
  ~Operation() override;  // gives up what is not done
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  bool test() final;
  void wait() final;
  void step();
  bool done() const { return done_; }

 protected:
  virtual bool advance() = 0;  // starts the next phase; true: there is none
  // Messages of this operation; those between two ranks match in order.
  void send(const void* data, int64_t num_bytes, int peer);
  void recv(void* data, int64_t num_bytes, int peer);
  uint8_t* scratch(int64_t num_bytes);  // until the operation is done

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }
  const CommunicatorOptions& options() const { return comm_.state_->options(); }

  int user_tag_ = -1;  // set by point-to-point operations; a collective takes the next sequence number

 private:
  friend class P2PCommunicator;
  struct Transfer {
    int id;
    int peer;
    bool is_send;
  };

  P2PCommunicator::Message message(int peer) const;
  void finish();
  std::string overdue(double seconds);

  P2PCommunicator& comm_;
  const char* name_;
  int64_t num_bytes_;
  int64_t sequence_ = -1;
  std::vector<Transfer> transfers_;
  size_t next_ = 0;  // transfers before it are done
  Buffer scratch_;
  bool active_ = false;
  bool done_ = false;
};

}  // namespace lamina::comm
