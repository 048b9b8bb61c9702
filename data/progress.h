// A progress line on stderr: redrawn in place on a terminal, otherwise a new line every few seconds.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace lamina {

class Progress {
 public:
  Progress(std::string label, int64_t total_bytes, bool enabled);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done_bytes);
  double seconds() const;

  // "12.3 of 45.6 MB, 7.8 MB/s, 4 s left"
  static std::string describe(int64_t done_bytes, int64_t total_bytes, double seconds);

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  int64_t total_bytes_;
  bool enabled_;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

}  // namespace lamina
