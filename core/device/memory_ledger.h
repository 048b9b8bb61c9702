// Counts the bytes that buffers hold, by purpose ("parameters", "activations", ...): what "peak memory per component"
// reports, and how a test proves that a steady-state step allocates nothing. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace lamina {

class MemoryLedger {
 public:
  struct Entry {
    int64_t current_bytes = 0;
    int64_t peak_bytes = 0;
    int64_t num_allocations = 0;  // since the ledger was made
  };

  void add(const std::string& purpose, int64_t bytes);
  void remove(const std::string& purpose, int64_t bytes);

  std::map<std::string, Entry> entries() const;
  int64_t num_allocations() const;  // over all purposes
  int64_t peak_bytes() const;       // of the sum over all purposes
  std::string report() const;       // a table for people

 private:
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  int64_t current_bytes_ = 0;
  int64_t peak_bytes_ = 0;
};

}  // namespace lamina
