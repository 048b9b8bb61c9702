// An ordered queue of work on a device. On the CPU work runs when it is issued, so a stream is only a name for "now".
#pragma once

#include "core/device/device.h"

namespace lamina {

class Stream {
 public:
  Stream() = default;
  explicit Stream(Device device) : device_(device) {}
  Device device() const { return device_; }
  void synchronize() {}  // returns when everything issued so far has finished

 private:
  Device device_;
};

}  // namespace lamina
