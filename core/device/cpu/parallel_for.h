// Loops over the cores of this rank. OpenMP underneath, the same pool that oneDNN uses: two pools would fight for cores.
// The partition is a function of (count, number of threads) only. Sums over it would depend on the number of threads: they belong to parts
// that don't (RowParts in core/ops/simd/parameters.h). Bodies must not throw.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace lamina::cpu {

// Threads that loops started by the calling thread use from now on; each rank that is a thread sets its own.
void set_num_threads(int num_threads);
int num_threads();

// Threads to use for `count` units of work when fewer than `grain` units per thread would not pay.
inline int threads_for(int64_t count, int64_t grain) {
  if (omp_in_parallel() != 0) return 1;
  const int64_t useful = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  return static_cast<int>(std::min<int64_t>(useful, omp_get_max_threads()));
}

// One thread while it lives.
class OneThread {
 public:
  OneThread() : before_(num_threads()) {
    if (before_ != 1) set_num_threads(1);
  }
  ~OneThread() {
    if (before_ != 1) set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

struct Range {
  int64_t begin, end;
};
inline Range range_of(int64_t count, int part, int num_parts) {
  return {count * part / num_parts, count * (part + 1) / num_parts};
}

// body(begin, end) on disjoint ranges that cover [0, count).
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  const int threads = threads_for(count, grain);
  if (threads == 1) {
    body(int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const Range range = range_of(count, omp_get_thread_num(), omp_get_num_threads());
    if (range.begin < range.end) body(range.begin, range.end);
  }
}

// body(thread, begin, end) with exactly `threads` parts (some may be empty): for per-thread partial results.
template <class Body>
void parallel_parts(int64_t count, int threads, Body&& body) {
  if (threads == 1) {
    body(0, int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    // OpenMP may grant fewer threads than asked for; every part is still done, by whoever is there.
    for (int part = omp_get_thread_num(); part < threads; part += omp_get_num_threads()) {
      const Range range = range_of(count, part, threads);
      body(part, range.begin, range.end);
    }
  }
}

}  // namespace lamina::cpu
