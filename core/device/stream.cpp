#include "core/device/stream.h"

#include <utility>

#include "core/device/cuda_device.h"

namespace lamina {

Stream::Stream(Device device) : device_(device) {
  if (device.kind == DeviceKind::cuda) state_ = cuda::make_stream(device.index);
}

void Stream::synchronize() {
  if (!state_) return;
  ++state_->num_waits;
  state_->synchronize(state_->watch);
}

void Stream::set_watch(std::function<void()> watch) {
  if (state_) state_->watch = std::move(watch);
}

void Event::record(Stream& stream) {
  if (stream.device().kind == DeviceKind::cpu) {
    state_.reset();
    return;
  }
  if (!state_) state_ = cuda::make_event(stream.device().index);
  state_->record(stream);
}

void Event::hold(Stream& stream) const {
  if (state_ && stream.device().kind == DeviceKind::cuda) state_->hold(stream);
}

bool Event::reached() const {
  return !state_ || state_->reached();
}

void Event::wait(Stream& stream) const {
  if (state_ && stream.state() != nullptr) state_->wait(stream.state()->watch);
}

double Event::seconds_since(const Event& earlier) const {
  return state_ && earlier.state_ ? state_->seconds_since(*earlier.state_) : 0.0;
}

}  // namespace lamina
