// What is known of a device that a plan may be for: configs/devices/*.yaml, or a file of the user's.
#pragma once

#include <string>

namespace lamina {

// A data sheet's value; a measured one; or nobody's, which the file says all the same so that it can be corrected.
enum class FigureBasis { datasheet, measured, assumed };

struct DeviceFigure {
  double value = 0;
  FigureBasis basis = FigureBasis::assumed;
  std::string source;
};

struct DeviceRates {
  DeviceFigure bf16_tflops;   // dense products on tensor cores, 10^12 FLOP per second
  DeviceFigure memory_gbps;   // 10^9 bytes per second, as the next two
  DeviceFigure node_gbps;     // sent by one device inside its node, one direction
  DeviceFigure network_gbps;  // sent by one device to other nodes
};

// Shares of the rates, and of the memory, that a run can count on.
struct DeviceShares {
  DeviceFigure products, experts, attention,
      kda;                             // of bf16_tflops: cuBLAS, grouped products, and the kernels of those names
  DeviceFigure memory, node, network;  // of the rates of those names
  DeviceFigure capacity;               // of memory_gib
};

struct DeviceConfig {
  std::string name;
  DeviceFigure memory_gib;  // 2^30 bytes
  int ranks_per_node = 8;
  DeviceFigure launch_us;  // that a kernel takes beyond its work, microseconds
  DeviceRates rates;
  DeviceShares attainable;
};

// Throws Error: "<file>:<line>: <key.path>: <what was found>, expected <what>". The first takes files that include others (files.h).
DeviceConfig load_device(const std::string& path);
DeviceConfig parse_device(const std::string& yaml, const std::string& name);

std::string name_of(FigureBasis basis);  // as in the file

}  // namespace lamina
