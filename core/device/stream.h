// An ordered queue of work on a device. On the CPU work runs when it is issued, so a stream is only a name for "now". On a
// GPU everything issued runs later, in order; what another stream or the host needs must be waited for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/device/device.h"

namespace lamina {

// A device's side of a stream. Owned by the streams that name it.
class StreamState {
 public:
  StreamState() = default;
  StreamState(const StreamState&) = delete;
  StreamState& operator=(const StreamState&) = delete;
  virtual ~StreamState() = default;
  virtual void* handle() const = 0;  // cudaStream_t
  // Returns when everything issued so far has finished; calls `watch`, when given, now and then while it waits.
  virtual void synchronize(const std::function<void()>& watch) = 0;

  std::shared_ptr<void> libraries;  // handles of libraries that are bound to this stream; whoever needs one makes it
  std::function<void()> watch;      // see Stream::set_watch
  int64_t num_waits = 0;            // see Stream::num_waits
};

// Copies name the same queue.
class Stream {
 public:
  Stream() = default;              // the CPU's
  explicit Stream(Device device);  // a new queue; Error when the device can't be used
  Device device() const { return device_; }
  void synchronize();  // returns when everything issued so far has finished; on a GPU throws what went wrong there
  // Called now and then while synchronize() waits; may throw to give up, as when another rank has ended the job.
  void set_watch(std::function<void()> watch);
  // How often the host has waited until nothing was left to do: each time the device then stands idle. 0 on the CPU.
  int64_t num_waits() const { return state_ ? state_->num_waits : 0; }
  StreamState* state() const { return state_.get(); }  // null on the CPU

 private:
  Device device_;
  std::shared_ptr<StreamState> state_;
};

// A point in a stream's work. On the CPU it has always been reached. Move-only.
class Event {
 public:
  Event() = default;            // reached
  void record(Stream& stream);  // everything issued to `stream` so far
  void hold(
      Stream& stream) const;  // what is issued to `stream` from now on runs after this point; the host does not wait
  bool reached() const;
  // Returns when it is reached; calls the watch of `stream`, of the event's device, now and then while it waits.
  void wait(Stream& stream) const;
  // Between two recorded points that were reached, as the GPU's clock says; 0 on the CPU.
  double seconds_since(const Event& earlier) const;

  struct State {
    virtual ~State() = default;
    virtual void record(Stream& stream) = 0;
    virtual void hold(Stream& stream) const = 0;
    virtual bool reached() const = 0;
    virtual void wait(const std::function<void()>& watch) const = 0;
    virtual double seconds_since(const State& earlier) const = 0;
  };

 private:
  std::unique_ptr<State> state_;
};

}  // namespace lamina
