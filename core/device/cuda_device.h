// What the rest of Lamina may ask of NVIDIA GPUs without seeing a CUDA header. A build without CUDA has no devices and says so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/device/stream.h"

namespace lamina::cuda {

bool is_built();  // this build has CUDA code
// CUDA's settings that kernels of ranks which wait for each other need; what the user has set stays. All functions below do it first;
// to be called before what may start CUDA by itself, as MPI.
void prepare();
int num_devices();  // usable ones: 0 without a driver or a GPU
// Why there is none, for people: "this build has no CUDA", "no NVIDIA driver was found", ... Empty when there is one.
std::string why_none();
void require_device(int index);  // Error, with the reason, unless 0 <= index < num_devices()

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int num_multiprocessors = 0;
  int64_t total_bytes = 0, free_bytes = 0;
  std::string bus_id;  // PCI, "0000:1b:00.0"
};
DeviceInfo device_info(int index);
// Of the toolkit this was built with, and the newest that the driver can run: 13000 for 13.0. 0 when unknown.
int runtime_version();
int driver_version();

// Errors name the purpose. Memory is not cleared.
void* allocate(int device, int64_t num_bytes, const std::string& purpose);
void deallocate(int device, void* data) noexcept;  // waits for what may still use it
// Of the host, page-locked in the device's context, so that no rank opens a GPU that is not its own.
void* allocate_pinned(int device, int64_t num_bytes, const std::string& purpose);
void deallocate_pinned(int device, void* data) noexcept;

// Both ends are device memory or pinned host memory; in stream order. Other memory of the host goes through a StagingPool: the driver
// would hold up the host for it, out of reach of the stream's watch.
void copy(void* to, const void* from, int64_t num_bytes, Stream& stream);
void fill_zero(void* data, int64_t num_bytes, Stream& stream);
void fill_zero_now(int device, void* data, int64_t num_bytes);  // returns when it is done

std::shared_ptr<StreamState> make_stream(int device);
std::unique_ptr<Event::State> make_event(int device);

}  // namespace lamina::cuda
