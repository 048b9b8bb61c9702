// Shared by the forward and the backward kernel of attention: how a head is cut into tiles and tiles into parts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/document_starts.h"
#include "core/ops/op.h"

namespace lamina::ops::cpu {

// Queries and keys per tile: a tile of scores is half of a 32 KiB L1, and the tile's operands fit L2.
inline constexpr size_t tile = 64;
inline constexpr size_t widest_panel = 32;  // what outputs are padded to, whatever the instruction set

inline size_t round_up(size_t count, size_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

struct HeadShape {
  size_t num_tokens, d_qk, d_v;
  size_t padded_tokens() const { return round_up(num_tokens, tile); }
  size_t num_tiles() const { return padded_tokens() / tile; }
  size_t rows_of_tile(size_t index) const { return std::min(tile, num_tokens - index * tile); }
  size_t qk4() const { return round_up(d_qk, 4); }
  size_t v4() const { return round_up(d_v, 4); }
  size_t qk_padded() const { return round_up(d_qk, widest_panel); }
  size_t v_padded() const { return round_up(d_v, widest_panel); }
};

// One head of one sequence, and the share of its tiles that this call does.
struct Share {
  int64_t batch, head;
  size_t part, num_parts;

  // Back and forth over the parts, because under a causal mask a tile's work grows or falls linearly with its index.
  bool owns(size_t index) const {
    const size_t at = index % (2 * num_parts);
    return (at < num_parts ? at : 2 * num_parts - 1 - at) == part;
  }
};

// The first key that a query sees.
inline size_t first_key_of(const TensorView& document_starts, int64_t batch, size_t token) {
  return static_cast<size_t>(document_start(document_starts, batch, static_cast<int64_t>(token)));
}

// Heads first: `whole(thread, batch, head)` for as many as divide evenly among the threads, then `shared(first, count)`: the
// remaining heads, fewer than threads, counted through all sequences, each of which all threads work on.
template <class Whole, class Shared>
void for_heads(int64_t batch, int64_t heads, int threads, Whole&& whole, Shared&& shared) {
  const int64_t pairs = batch * heads, even = pairs / threads * threads;
  lamina::cpu::parallel_parts(even, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) whole(thread, pair / heads, pair % heads);
  });
  if (even < pairs) shared(even, pairs - even);
}

inline float* take_floats(OpContext& ctx, size_t count) {
  return ctx.scratch.take(DType::f32, {static_cast<int64_t>(count)}).as<float>();
}

template <class T>
T* row_of(const TensorView& view, int64_t batch, int64_t head, size_t token) {
  return view.as<T>() + batch * view.stride(0) + head * view.stride(2) + static_cast<int64_t>(token) * view.stride(1);
}

// A head's rows lie apart, which the processor's own prefetching does not follow: asks for the row that comes after some others.
template <class T>
void prefetch_later_row(const TensorView& view, int64_t batch, int64_t head, size_t token) {
  constexpr size_t rows_ahead = 8, line = 64;
  if (token + rows_ahead >= static_cast<size_t>(view.size(1))) return;
  const char* row = reinterpret_cast<const char*>(row_of<T>(view, batch, head, token + rows_ahead));
  const size_t bytes = static_cast<size_t>(view.size(3)) * sizeof(T);
  for (size_t at = 0; at < bytes; at += line) __builtin_prefetch(row + at);
}

}  // namespace lamina::ops::cpu
