#include "core/device/memory_ledger.h"

#include <fmt/format.h>

#include <algorithm>

namespace lamina {

void MemoryLedger::add(const std::string& purpose, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  Entry& entry = entries_[purpose];
  entry.current_bytes += bytes;
  entry.peak_bytes = std::max(entry.peak_bytes, entry.current_bytes);
  ++entry.num_allocations;
  current_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, current_bytes_);
}

void MemoryLedger::remove(const std::string& purpose, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  entries_[purpose].current_bytes -= bytes;
  current_bytes_ -= bytes;
}

std::map<std::string, MemoryLedger::Entry> MemoryLedger::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

int64_t MemoryLedger::num_allocations() const {
  const std::lock_guard lock(mutex_);
  int64_t sum = 0;
  for (const auto& [purpose, entry] : entries_) sum += entry.num_allocations;
  return sum;
}

int64_t MemoryLedger::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_bytes_;
}

std::string MemoryLedger::report() const {
  std::string out = fmt::format("{:<24} {:>12} {:>12}\n", "memory", "now (MiB)", "peak (MiB)");
  const double mib = 1024.0 * 1024.0;
  for (const auto& [purpose, entry] : entries())
    out += fmt::format("{:<24} {:>12.1f} {:>12.1f}\n", purpose, static_cast<double>(entry.current_bytes) / mib,
                       static_cast<double>(entry.peak_bytes) / mib);
  return out;
}

}  // namespace lamina
