// A group of ranks. One interface; behind it a single process (self), threads of one process, MPI;
// and for the memory of GPUs NCCL, or any of these through the host's memory (staged).
//
// Counts are elements of views, never bytes. Every call returns a Request; the buffers belong to the operation until the
// request is done. Sums are taken in rank order 0, 1, .. size-1 in accumulation_dtype(), by the same code for threads and
// for MPI, so the same layout gives the same bits in one process or in many.
// Operations on one communicator are issued in the same order by every rank.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/device/stream.h"
#include "core/tensor/view.h"

namespace lamina::comm {

enum class ReduceOp { sum, max, min };

// A pending operation. Move-only. Destroying one that is not done waits for it.
class Request {
 public:
  struct State {
    virtual ~State() = default;
    virtual bool test() = 0;  // makes progress; true once done
    virtual void wait() = 0;
  };

  Request() = default;  // already done
  explicit Request(std::unique_ptr<State> state);
  ~Request();
  Request(Request&&) noexcept;
  Request& operator=(Request&&) noexcept;

  bool test();
  void wait();
  void give_up();  // does not wait: unless it was done the communicator refuses further work, as after a failure

 private:
  std::unique_ptr<State> state_;
};

// Messages to or from one rank with one tag.
struct Channel {
  bool is_send = false;
  int peer = 0, tag = 0;
  bool operator==(const Channel&) const = default;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;  // inside this group
  virtual int size() const = 0;

  virtual Request send(TensorView view, int destination, int tag, Stream& stream) = 0;
  virtual Request recv(TensorView view, int source, int tag, Stream& stream) = 0;

  virtual Request all_reduce(TensorView inout, ReduceOp op, Stream& stream) = 0;
  // in holds size() equal consecutive parts; rank r receives the reduction of part r. out may be part r of in.
  virtual Request reduce_scatter(TensorView in, TensorView out, ReduceOp op, Stream& stream) = 0;
  // out holds size() equal consecutive parts; part r is rank r's in. in may be part r of out.
  virtual Request all_gather(TensorView in, TensorView out, Stream& stream) = 0;
  virtual Request broadcast(TensorView inout, int root, Stream& stream) = 0;
  // Part r of in goes to rank r; part s of out comes from rank s. Equal parts.
  virtual Request all_to_all(TensorView in, TensorView out, Stream& stream) = 0;
  // The same with parts of any size, elements: send_counts[r] of `in` go to rank r, receive_counts[s] of `out` come from rank s,
  // both in rank order without gaps. What a rank sends to another must be what that one receives.
  virtual Request all_to_all_v(TensorView in, std::span<const int64_t> send_counts, TensorView out,
                               std::span<const int64_t> receive_counts, Stream& stream) = 0;
  virtual void barrier() = 0;
  // Makes now the connections that messages of `stream`'s device on these channels, and the group's collective operations when
  // these are wanted, would else make at their first use: then they could wait for kernels that wait for other ranks. Collective;
  // a channel is named by both its ends. What is not named works too.
  virtual void connect([[maybe_unused]] std::span<const Channel> channels, [[maybe_unused]] bool collectives,
                       [[maybe_unused]] Stream& stream) {}
  // Moves on what is pending, of all groups of this rank; throws when that has failed or another rank has ended the job. Cheap.
  virtual void progress() {}
  // While set, what this rank waits for on the CPU may last as long as it takes, as where another rank reads or writes files: instead of
  // ending the job, each time limit that passes is told in the log. Returns what was set before. Of all groups of this rank.
  virtual bool set_patient(bool patient) = 0;

  // A sub-group of the ranks that pass the same color, ordered by key, then rank. Collective over this group.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  // Takes the whole job down: every rank's pending and future calls fail or the process ends.
  [[noreturn]] virtual void abort(const std::string& reason) = 0;

  // Bytes this rank has sent through this communicator since the last call.
  virtual int64_t take_bytes_sent() = 0;
};

// Sets it for as long as it lives.
class Patience {
 public:
  explicit Patience(Communicator& comm) : comm_(comm), before_(comm.set_patient(true)) {}
  ~Patience() { comm_.set_patient(before_); }
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

 private:
  Communicator& comm_;
  bool before_;
};

}  // namespace lamina::comm
