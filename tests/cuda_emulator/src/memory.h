// Memory of the devices: one range of addresses for each, which is accessible only while somebody has it open.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "device.h"

namespace lamina_emulator {

class Memory {
 public:
  Memory();
  size_t capacity() const { return capacity_; }  // of one device
  size_t free_bytes(int device);

  void* allocate(int device, size_t num_bytes);  // null when there is no room
  // False when nothing was allocated there. Sets `damage` when bytes next to the allocation were written.
  bool deallocate(void* data, std::string& damage);

  // Device of the address, or -1 for the host's.
  int device_of(const void* address) const;
  // Whether [data, data + num_bytes) lies in one allocation.
  bool holds(const void* data, size_t num_bytes);
  std::string describe(const void* address);  // "device memory of GPU 0: an allocation of 64 bytes, offset 8"

  // Host memory that was allocated pinned, while `device` was the current one.
  void* allocate_pinned(int device, size_t num_bytes);
  bool deallocate_pinned(void* data);
  int pinned_by(const void* address);  // the device, or -1 for other memory
  bool is_pinned(const void* address) { return pinned_by(address) >= 0; }

  void open(int device);
  void close(int device);

 private:
  struct Allocation {
    size_t num_bytes = 0;  // as asked for
    size_t extent = 0;     // with the guard and rounding
  };
  struct Region {
    std::byte* base = nullptr;
    std::mutex mutex;
    std::map<std::byte*, Allocation> allocations;
    std::map<std::byte*, size_t> holes;  // below `end`, never next to each other
    std::byte* end = nullptr;            // of the highest allocation
    size_t used = 0;
    int num_open = 0;
  };
  void protect(Region& region, std::byte* from, std::byte* to, bool accessible) const;
  std::byte* find_place(Region& region, size_t extent);
  void give_back(Region& region, std::byte* place, size_t extent);

  std::byte* base_ = nullptr;
  size_t capacity_ = 0, stride_ = 0;
  bool protects_ = true;
  std::array<Region, max_devices> regions_;
  std::mutex pinned_mutex_;
  struct Pinned {
    size_t num_bytes = 0;
    int device = 0;
  };
  std::map<std::byte*, Pinned> pinned_;
};

Memory& memory();

class Opened {  // for the lifetime of the object
 public:
  explicit Opened(int device) : device_(device) { memory().open(device); }
  ~Opened() { memory().close(device_); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  int device_;
};

}  // namespace lamina_emulator
