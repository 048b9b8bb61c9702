// Where bytes live and where work runs.
#pragma once

#include <cstdint>

namespace lamina {

enum class DeviceKind : uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

}  // namespace lamina
