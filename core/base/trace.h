// What one rank did in a stretch of time, as spans on tracks: for pictures, not for decisions. A recorder belongs to one rank and
// is used by that rank's thread only. Code that records holds a pointer to it. The pointer is null most of the time: then nothing
// is looked up, allocated or timed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/clock.h"

namespace lamina::trace {

using lamina::Clock;

enum class Track : uint8_t {
  phases,   // of the trainer; they may contain each other
  compute,  // actions of the pipeline's schedule, one after the other
  waiting,  // the host waits for another rank
  sends,    // in flight: these may overlap, as on all tracks below
  receives,
  data_parallel,  // reductions and gathers
  experts,        // rows to experts and back
};
constexpr int num_tracks = 7;

struct Span {
  Track track = Track::phases;
  const char* name = "";                                    // a literal
  double begin = 0, end = 0;                                // seconds after the recorder's origin
  int chunk = -1, microbatch = -1, peer = -1, bucket = -1;  // -1: not of this span
  int64_t bytes = -1;                                       // that this rank sends, or receives on `receives`
  int64_t summary_bytes = -1;                               // of these, block summaries
};

class Recorder {
 public:
  static constexpr size_t default_capacity = size_t{1} << 18;

  // All memory is taken here: recording allocates nothing, and what doesn't fit is counted and dropped.
  explicit Recorder(Clock::time_point origin, size_t capacity = default_capacity);
  // Those who record hold pointers to it.
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  double now() const { return std::chrono::duration<double>(Clock::now() - origin_).count(); }
  // Begins a span now; returns what close() takes. Spans may be closed in any order, each once.
  int64_t open(Span span);
  void close(int64_t id);
  void add(const Span& span);  // begin and end are known

  const std::vector<Span>& spans() const;  // in the order they began to be recorded; all must be closed
  size_t num_dropped() const { return num_dropped_; }

 private:
  Clock::time_point origin_;
  size_t capacity_;
  std::vector<Span> spans_;
  size_t num_dropped_ = 0;
  size_t num_open_ = 0;
};

// A span from here to the end of the block; nothing without a recorder.
class Scope {
 public:
  Scope(Recorder* recorder, Track track, const char* name);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  Recorder* recorder_;
  int64_t id_ = -1;
};

}  // namespace lamina::trace
