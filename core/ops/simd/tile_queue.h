// Work cut into tiles by shape alone, which the threads of a loop take one after the other: results don't depend on the number of
// threads, and no thread waits for another's long piece.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/op.h"

namespace lamina::ops::cpu {

inline int64_t round_up_to(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Calls body(begin, length) for nearly equal parts of about `most`, cut at multiples of 32.
template <class Body>
void for_parts(int64_t count, int64_t most, Body&& body) {
  const int64_t num_parts = (count + most - 1) / most;
  for (int64_t part = 0; part < num_parts; ++part) {
    const auto edge = [&](int64_t p) {
      return p == num_parts ? count : std::min(count, round_up_to(count * p / num_parts, 32));
    };
    if (edge(part) < edge(part + 1)) body(edge(part), edge(part + 1) - edge(part));
  }
}

// body(tile, scratch of this thread), the tiles in any order.
template <class Tile, class Body>
void for_tiles(OpContext& ctx, std::span<const Tile> tiles, int64_t scratch_bytes, Body&& body) {
  const ArenaScope scope(ctx.scratch);
  const int threads = lamina::cpu::threads_for(static_cast<int64_t>(tiles.size()), 1);
  const int64_t words = round_up_to(scratch_bytes, 64) / 4;
  auto* scratch = ctx.scratch.take(DType::f32, {threads * words}).as<float>();
  std::atomic<size_t> next = 0;
  lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
    auto* own = reinterpret_cast<char*>(scratch + thread * words);
    for (size_t tile = next++; tile < tiles.size(); tile = next++) body(tiles[tile], own);
  });
}

}  // namespace lamina::ops::cpu
