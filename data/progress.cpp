#include "data/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace lamina {

Progress::Progress(std::string label, int64_t total_bytes, bool enabled)
    : label_(std::move(label)), total_bytes_(total_bytes), enabled_(enabled), terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (drawn_ && terminal_) std::fputs("\r\x1b[K", stderr);
}

double Progress::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void Progress::update(int64_t done_bytes) {
  if (!enabled_) return;
  const Clock::time_point now = Clock::now();
  if (now - last_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(5000))) return;
  last_ = now;
  drawn_ = true;
  const std::string line = fmt::format("{}: {}", label_, describe(done_bytes, total_bytes_, seconds()));
  std::fputs(terminal_ ? ("\r" + line + "\x1b[K").c_str() : (line + "\n").c_str(), stderr);
  std::fflush(stderr);
}

std::string Progress::describe(int64_t done_bytes, int64_t total_bytes, double seconds) {
  const double done = static_cast<double>(done_bytes) / 1e6;
  const double rate = seconds > 0 ? done / seconds : 0;
  if (done_bytes > total_bytes) return fmt::format("{:.1f} MB, {:.1f} MB/s", done, rate);  // from a pipe
  const double total = static_cast<double>(total_bytes) / 1e6;
  std::string line = fmt::format("{:.1f} of {:.1f} MB, {:.1f} MB/s", done, total, rate);
  if (rate > 0) line += fmt::format(", {:.0f} s left", std::max(0.0, (total - done) / rate));
  return line;
}

}  // namespace lamina
