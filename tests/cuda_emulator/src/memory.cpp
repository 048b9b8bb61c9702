#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "crash.h"
#include "errors.h"
#include "settings.h"
#include "stream.h"

namespace lamina_emulator {
namespace {

constexpr size_t page = 4096;
constexpr size_t alignment = 256;
constexpr size_t guard = 256;  // bytes at least behind every allocation
constexpr int poison = 0xff, guard_pattern = 0xa5;

constexpr size_t rounded_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

Memory& memory() {
  static Memory& all = *new Memory;
  return all;
}

Memory::Memory() {
  capacity_ = static_cast<size_t>(setting("LAMINA_EMULATOR_MEMORY_MIB", 64 << 10)) << 20;
  protects_ = setting("LAMINA_EMULATOR_PROTECT", 1) != 0;
  stride_ = rounded_up(capacity_, 1 << 30) + (1 << 30);  // nothing is ever accessible between the devices
  void* const base =
      mmap(nullptr, stride_ * max_devices, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    std::perror("CUDA emulator: reserving addresses for device memory");
    std::abort();
  }
  base_ = static_cast<std::byte*>(base);
  for (size_t device = 0; device < max_devices; ++device)
    regions_[device].base = regions_[device].end = base_ + device * stride_;
  watch_for_crashes();
}

void Memory::protect(Region& region, std::byte* from, std::byte* to, bool accessible) const {
  // A page that two ranges share belongs to both.
  const size_t first = static_cast<size_t>(from - region.base) / page * page;
  const size_t last = rounded_up(static_cast<size_t>(to - region.base), page);
  if (first == last) return;
  if (mprotect(region.base + first, last - first, accessible ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
    std::perror("CUDA emulator: protecting device memory");
    std::abort();
  }
}

void Memory::open(int device) {
  Region& region = regions_[static_cast<size_t>(device)];
  const std::lock_guard lock(region.mutex);
  if (region.num_open++ == 0) protect(region, region.base, region.end, true);
}

void Memory::close(int device) {
  Region& region = regions_[static_cast<size_t>(device)];
  const std::lock_guard lock(region.mutex);
  if (--region.num_open == 0 && protects_) protect(region, region.base, region.end, false);
}

size_t Memory::free_bytes(int device) {
  Region& region = regions_[static_cast<size_t>(device)];
  const std::lock_guard lock(region.mutex);
  return capacity_ - region.used;
}

std::byte* Memory::find_place(Region& region, size_t extent) {
  for (auto hole = region.holes.begin(); hole != region.holes.end(); ++hole) {
    if (hole->second < extent) continue;
    const auto [place, size] = *hole;
    region.holes.erase(hole);
    if (size > extent) region.holes[place + extent] = size - extent;
    return place;
  }
  if (static_cast<size_t>(region.end - region.base) + extent > capacity_) return nullptr;
  std::byte* const place = region.end;
  region.end += extent;
  protect(region, place, region.end, true);  // the caller has the region open
  return place;
}

void Memory::give_back(Region& region, std::byte* place, size_t extent) {
  auto next = region.holes.lower_bound(place);
  if (next != region.holes.end() && place + extent == next->first) {
    extent += next->second;
    next = region.holes.erase(next);
  }
  if (next != region.holes.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == place) {
      place = before->first;
      extent += before->second;
      region.holes.erase(before);
    }
  }
  if (place + extent != region.end) {
    region.holes[place] = extent;
    return;
  }
  // The range that must be protected shrinks. What is above becomes inaccessible and its pages go back to the system.
  std::byte* const from = region.base + rounded_up(static_cast<size_t>(place - region.base), page);
  std::byte* const to = region.base + rounded_up(static_cast<size_t>(region.end - region.base), page);
  if (from < to) {
    madvise(from, static_cast<size_t>(to - from), MADV_DONTNEED);
    protect(region, from, to, false);
  }
  region.end = place;
}

void* Memory::allocate(int device, size_t num_bytes) {
  const Opened opened(device);
  Region& region = regions_[static_cast<size_t>(device)];
  const std::lock_guard lock(region.mutex);
  const size_t extent = rounded_up(num_bytes + guard, alignment);
  if (num_bytes > capacity_ || region.used + extent > capacity_) return nullptr;
  std::byte* const place = find_place(region, extent);
  if (place == nullptr) return nullptr;
  std::memset(place, poison, num_bytes);
  std::memset(place + num_bytes, guard_pattern, extent - num_bytes);
  region.allocations[place] = {num_bytes, extent};
  region.used += extent;
  return place;
}

bool Memory::deallocate(void* data, std::string& damage) {
  const int device = device_of(data);
  if (device < 0) return false;
  const Opened opened(device);
  Region& region = regions_[static_cast<size_t>(device)];
  const std::lock_guard lock(region.mutex);
  const auto found = region.allocations.find(static_cast<std::byte*>(data));
  if (found == region.allocations.end()) return false;
  const auto [place, allocation] = *found;
  const std::byte* const end = place + allocation.extent;
  const std::byte* const written = std::find_if(static_cast<const std::byte*>(place + allocation.num_bytes), end,
                                                [](std::byte byte) { return byte != std::byte{guard_pattern}; });
  if (written != end)
    damage = "something wrote behind an allocation of " + std::to_string(allocation.num_bytes) + " bytes of GPU " +
             std::to_string(device) + ", at offset " + std::to_string(written - place);
  std::memset(place, poison, allocation.extent);
  region.used -= allocation.extent;
  region.allocations.erase(found);
  give_back(region, place, allocation.extent);
  return true;
}

int Memory::device_of(const void* address) const {
  const auto* const at = static_cast<const std::byte*>(address);
  if (at < base_ || at >= base_ + stride_ * max_devices) return -1;
  return static_cast<int>(static_cast<size_t>(at - base_) / stride_);
}

bool Memory::holds(const void* data, size_t num_bytes) {
  const int device = device_of(data);
  if (device < 0) return false;
  Region& region = regions_[static_cast<size_t>(device)];
  auto* const at = static_cast<std::byte*>(const_cast<void*>(data));
  const std::lock_guard lock(region.mutex);
  auto after = region.allocations.upper_bound(at);
  if (after == region.allocations.begin()) return false;
  const auto& [place, allocation] = *std::prev(after);
  return static_cast<size_t>(at - place) + num_bytes <= allocation.num_bytes;
}

std::string Memory::describe(const void* address) {
  const int device = device_of(address);
  if (device < 0) return "memory of the host";
  Region& region = regions_[static_cast<size_t>(device)];
  auto* const at = static_cast<std::byte*>(const_cast<void*>(address));
  const std::string where = "device memory of GPU " + std::to_string(device);
  const std::unique_lock lock(region.mutex, std::try_to_lock);  // may be called by a signal's handler
  if (!lock) return where;
  auto after = region.allocations.upper_bound(at);
  if (after == region.allocations.begin()) return where + " that is not allocated";
  const auto& [place, allocation] = *std::prev(after);
  const auto offset = static_cast<size_t>(at - place);
  if (offset >= allocation.extent) return where + " that is not allocated";
  return where + ": allocation of " + std::to_string(allocation.num_bytes) + " bytes, offset " + std::to_string(offset);
}

void* Memory::allocate_pinned(int device, size_t num_bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, page, std::max<size_t>(num_bytes, 1)) != 0) return nullptr;
  std::memset(data, poison, num_bytes);
  const std::lock_guard lock(pinned_mutex_);
  pinned_[static_cast<std::byte*>(data)] = {num_bytes, device};
  return data;
}

bool Memory::deallocate_pinned(void* data) {
  {
    const std::lock_guard lock(pinned_mutex_);
    if (pinned_.erase(static_cast<std::byte*>(data)) == 0) return false;
  }
  std::free(data);
  return true;
}

int Memory::pinned_by(const void* address) {
  auto* const at = static_cast<std::byte*>(const_cast<void*>(address));
  const std::lock_guard lock(pinned_mutex_);
  const auto after = pinned_.upper_bound(at);
  if (after == pinned_.begin()) return -1;
  const auto& [data, pinned] = *std::prev(after);
  return static_cast<size_t>(at - data) < std::max<size_t>(pinned.num_bytes, 1) ? pinned.device : -1;
}

}  // namespace lamina_emulator

using namespace lamina_emulator;

cudaError_t cudaMalloc(void** devPtr, size_t size) {
  if (devPtr == nullptr) return remember(cudaErrorInvalidValue);
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  *devPtr = nullptr;
  if (size == 0) return cudaSuccess;
  *devPtr = memory().allocate(current_device(), size);
  return *devPtr != nullptr ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* devPtr) {
  if (devPtr == nullptr) return cudaSuccess;
  if (num_devices() == 0) return remember(cudaErrorNoDevice);
  const int device = memory().device_of(devPtr);
  if (device < 0) return remember(cudaErrorInvalidValue);
  wait_for_all_streams(device);
  std::string damage;
  if (!memory().deallocate(devPtr, damage)) return remember(cudaErrorInvalidValue);
  if (!damage.empty()) set_device_error(device, cudaErrorIllegalAddress, damage);
  return remember(device_error(device));
}

cudaError_t cudaHostAlloc(void** pHost, size_t size, unsigned int) {
  if (pHost == nullptr) return remember(cudaErrorInvalidValue);
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  *pHost = memory().allocate_pinned(current_device(), size);
  return *pHost != nullptr ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocHost(void** ptr, size_t size) {
  return cudaHostAlloc(ptr, size, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* ptr) {
  if (ptr == nullptr) return cudaSuccess;
  for (int device = 0; device < num_devices(); ++device) wait_for_all_streams(device);
  return memory().deallocate_pinned(ptr) ? cudaSuccess : remember(cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  if (const cudaError_t error = usable(); error != cudaSuccess) return remember(error);
  *free = memory().free_bytes(current_device());
  *total = memory().capacity();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* ptr) {
  *attributes = {};
  void* const address = const_cast<void*>(ptr);
  const int device = memory().device_of(ptr);
  if (device >= 0) {
    *attributes = {cudaMemoryTypeDevice, device, address, nullptr};
  } else if (const int pinned_by = memory().pinned_by(ptr); pinned_by >= 0) {
    *attributes = {cudaMemoryTypeHost, pinned_by, address, address};
  } else {
    *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, address};
  }
  return cudaSuccess;
}
