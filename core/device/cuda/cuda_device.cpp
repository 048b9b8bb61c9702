// NVIDIA GPUs through the CUDA runtime.
#include "core/device/cuda_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <utility>

#include "core/base/error.h"
#include "core/device/cuda/check.h"
#include "core/device/cuda/nap.h"

namespace lamina::cuda {
namespace {

constexpr double gib = 1024.0 * 1024 * 1024;

std::string version_text(int version) {  // 13000: 13.0
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string reason_for(cudaError_t status) {
  if (status == cudaErrorInsufficientDriver || status == cudaErrorStubLibrary) {
    if (driver_version() == 0) return "no NVIDIA driver was found";
    return fmt::format("the NVIDIA driver is too old: it runs CUDA up to {}, this build needs {}",
                       version_text(driver_version()), version_text(runtime_version()));
  }
  if (status == cudaErrorNoDevice)
    return driver_version() == 0 ? "no NVIDIA driver was found"
                                 : "the NVIDIA driver is there, but shows no GPU (is CUDA_VISIBLE_DEVICES empty?)";
  return fmt::format("the NVIDIA driver does not start: {} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
}

// Copies, launches and allocations go to the current device of the calling thread.
void select(int device) {
  prepare();
  check(cudaSetDevice(device), "choosing a GPU");
}

class CudaEvent {
 public:
  CudaEvent(int device, unsigned flags) : device_(device) {
    select(device);
    check(cudaEventCreateWithFlags(&event_, flags), "creating an event");
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;
  ~CudaEvent() { cudaEventDestroy(event_); }

  void record(cudaStream_t stream) {
    select(device_);
    check(cudaEventRecord(event_, stream), "recording an event");
  }
  bool reached() const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) return false;
    check(status, "work on the GPU");
    return true;
  }
  cudaEvent_t get() const { return event_; }
  int device() const { return device_; }

 private:
  int device_;
  cudaEvent_t event_ = nullptr;
};

// Asks instead of waiting in the driver, so that work that never ends, as an exchange with a peer that has died, can be given up.
void wait_until_reached(const CudaEvent& event, const std::function<void()>& watch) {
  using Clock = std::chrono::steady_clock;
  constexpr auto watch_every = std::chrono::milliseconds(1);
  const auto start = Clock::now();
  auto next_watch = start + spin_time;
  while (!event.reached()) {
    const auto now = Clock::now();
    if (const auto nap = nap_after(now - start); nap.count() > 0)
      std::this_thread::sleep_for(nap);
    else
      std::this_thread::yield();
    if (!watch || now < next_watch) continue;
    watch();
    next_watch = Clock::now() + watch_every;
  }
}

class CudaStream : public StreamState {
 public:
  explicit CudaStream(int device) : device_(device), finished_(device, cudaEventDisableTiming) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  }
  ~CudaStream() override {
    libraries.reset();  // handles that name the stream go first
    cudaStreamDestroy(stream_);
  }

  void* handle() const override { return stream_; }

  void synchronize(const std::function<void()>& watch_now) override {
    finished_.record(stream_);
    wait_until_reached(finished_, watch_now);
  }

 private:
  int device_;
  CudaEvent finished_;
  cudaStream_t stream_ = nullptr;
};

class EventState : public Event::State {
 public:
  explicit EventState(int device) : event_(device, cudaEventDefault) {}  // with times, for seconds_since

  void record(Stream& stream) override { event_.record(static_cast<cudaStream_t>(stream.state()->handle())); }
  void hold(Stream& stream) const override {
    select(stream.device().index);
    check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream.state()->handle()), event_.get(), 0),
          "waiting for an event");
  }
  bool reached() const override {
    select(event_.device());
    return event_.reached();
  }
  void wait(const std::function<void()>& watch) const override {
    select(event_.device());
    wait_until_reached(event_, watch);
  }
  double seconds_since(const State& earlier) const override {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, static_cast<const EventState&>(earlier).event_.get(), event_.get()),
          "the time between two events");
    return static_cast<double>(milliseconds) / 1000;
  }

 private:
  CudaEvent event_;
};

[[noreturn]] void fail_to_allocate(cudaError_t status, const std::string& where, int64_t num_bytes,
                                   const std::string& purpose, const std::string& state) {
  cudaGetLastError();  // the next call is not to report it again
  const auto what =
      status == cudaErrorMemoryAllocation ? std::string("out of memory") : std::string(cudaGetErrorString(status));
  throw Error("{} {}: {:.1f} GiB for {}{}", what, where, static_cast<double>(num_bytes) / gib, purpose, state);
}

}  // namespace

void fail(cudaError_t status, const char* what) {
  const std::string text = cudaGetErrorString(status), name = cudaGetErrorName(status);
  cudaGetLastError();  // an error of a call is not to show up again in the next one; those of the device stay
  throw Error("CUDA: {}: {} ({})", what, text, name);
}

bool is_built() {
  return true;
}

void prepare() {
  static const bool done = [] {
    // Loading a kernel at its first launch may wait for all that run, and streams that share one of few queues wait for each other:
    // either could close a circle of ranks.
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    return true;
  }();
  static_cast<void>(done);
}

int num_devices() {
  prepare();
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string why_none() {
  prepare();
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count > 0 ? "" : reason_for(cudaErrorNoDevice);
  cudaGetLastError();
  return reason_for(status);
}

void require_device(int index) {
  const int count = num_devices();
  if (count == 0) throw Error("{}", why_none());
  if (index < 0 || index >= count)
    throw Error("there is no GPU {}: this machine shows {}, counted from 0", index, count);
}

DeviceInfo device_info(int index) {
  require_device(index);
  select(index);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "asking for a GPU's properties");
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for a GPU's memory");
  std::array<char, 32> bus_id{};
  check(cudaDeviceGetPCIBusId(bus_id.data(), static_cast<int>(bus_id.size()), index), "asking for a GPU's bus");
  DeviceInfo info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.num_multiprocessors = properties.multiProcessorCount;
  info.total_bytes = static_cast<int64_t>(total);
  info.free_bytes = static_cast<int64_t>(free);
  info.bus_id = bus_id.data();
  return info;
}

int runtime_version() {
  return CUDART_VERSION;
}

int driver_version() {
  prepare();
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess) return version;
  cudaGetLastError();
  return 0;
}

void* allocate(int device, int64_t num_bytes, const std::string& purpose) {
  if (num_bytes == 0) return nullptr;
  select(device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(num_bytes));
  if (status == cudaSuccess) return data;
  size_t free = 0, total = 0;
  const bool known = cudaMemGetInfo(&free, &total) == cudaSuccess;
  fail_to_allocate(status, fmt::format("on GPU {}", device), num_bytes, purpose,
                   known ? fmt::format(", {:.1f} of {:.1f} GiB free", static_cast<double>(free) / gib,
                                       static_cast<double>(total) / gib)
                         : std::string());
}

void deallocate(int device, void* data) noexcept {
  if (data == nullptr) return;
  cudaSetDevice(device);
  cudaFree(data);  // an error of work before is reported where that is waited for
  cudaGetLastError();
}

void* allocate_pinned(int device, int64_t num_bytes, const std::string& purpose) {
  if (num_bytes == 0) return nullptr;
  select(device);
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, static_cast<size_t>(num_bytes), cudaHostAllocPortable);
  if (status == cudaSuccess) return data;
  fail_to_allocate(status, "(pinned, on the host)", num_bytes, purpose, "");
}

void deallocate_pinned(int device, void* data) noexcept {
  if (data == nullptr) return;
  cudaSetDevice(device);
  cudaFreeHost(data);
  cudaGetLastError();
}

void copy(void* to, const void* from, int64_t num_bytes, Stream& stream) {
  if (num_bytes == 0) return;
  select(stream.device().index);
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(num_bytes), cudaMemcpyDefault,
                        static_cast<cudaStream_t>(stream.state()->handle())),
        "copying");
}

void fill_zero(void* data, int64_t num_bytes, Stream& stream) {
  if (num_bytes == 0) return;
  select(stream.device().index);
  check(cudaMemsetAsync(data, 0, static_cast<size_t>(num_bytes), static_cast<cudaStream_t>(stream.state()->handle())),
        "clearing memory");
}

void fill_zero_now(int device, void* data, int64_t num_bytes) {
  if (num_bytes == 0) return;
  select(device);
  check(cudaMemset(data, 0, static_cast<size_t>(num_bytes)), "clearing memory");
  check(cudaStreamSynchronize(nullptr), "clearing memory");  // memset of device memory returns before it is done
}

std::shared_ptr<StreamState> make_stream(int device) {
  require_device(device);
  return std::make_shared<CudaStream>(device);
}

std::unique_ptr<Event::State> make_event(int device) {
  require_device(device);
  return std::make_unique<EventState>(device);
}

}  // namespace lamina::cuda
