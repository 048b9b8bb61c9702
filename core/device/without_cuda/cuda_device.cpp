// A build without CUDA: there are no GPUs, and what asks for one is told so.
#include "core/device/cuda_device.h"

#include "core/base/error.h"

namespace lamina::cuda {
namespace {

constexpr const char* reason =
    "this build has no CUDA: build with the preset cuda-release where the CUDA toolkit is installed";

[[noreturn]] void refuse() {
  throw Error("{}", reason);
}

}  // namespace

bool is_built() {
  return false;
}
int num_devices() {
  return 0;
}
std::string why_none() {
  return reason;
}
void require_device(int) {
  refuse();
}
DeviceInfo device_info(int) {
  refuse();
}
int runtime_version() {
  return 0;
}
void prepare() {}
int driver_version() {
  return 0;
}
void* allocate(int, int64_t, const std::string&) {
  refuse();
}
void deallocate(int, void*) noexcept {}
void* allocate_pinned(int, int64_t, const std::string&) {
  refuse();
}
void deallocate_pinned(int, void*) noexcept {}
void copy(void*, const void*, int64_t, Stream&) {
  refuse();
}
void fill_zero(void*, int64_t, Stream&) {
  refuse();
}
void fill_zero_now(int, void*, int64_t) {
  refuse();
}
std::shared_ptr<StreamState> make_stream(int) {
  refuse();
}
std::unique_ptr<Event::State> make_event(int) {
  refuse();
}

}  // namespace lamina::cuda
