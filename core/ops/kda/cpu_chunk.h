// Shared by the forward and the backward kernel of Kimi Delta Attention: how sequences are cut into segments (documents), and a
// thread's buffers for one chunk of one head.
//
// Notation, per channel (Kimi Linear, arXiv 2510.26692, eq. 6-9): D_ij = exp(g_{j+1} + ... + g_i), the decay from token j to i >= j.
// It is always a product of factors exp(g) <= 1 and never a quotient, so nothing overflows and what underflows is negligible. In
// a chunk, A_ij = sum_d k_i k_j D_ij (i > j) and Aqk_ij = sum_d q_i k_j D_ij (i >= j), with q scaled. From the state S before it:
//   E = v - (decayed k) S - A R,   R = beta E     the pseudo-values: a triangular system, solved by substitution
//   o = (decayed q) S + Aqk R,     S' = Diag(D_end) S + (k decayed to the end)^T R
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/ops/attention/cpu_tiles.h"
#include "core/ops/document_starts.h"
#include "core/ops/kda/kda.h"

namespace lamina::ops::cpu {

inline constexpr size_t chunk = 64, sub_block = 16, num_sub_blocks = chunk / sub_block;

// One document of one sequence.
struct Segment {
  int64_t batch;
  int64_t begin, end;  // tokens
  bool first, last;    // of its sequence
};

// Longest first, so that the threads end at about the same time.
std::vector<Segment> segments_of(const TensorView& document_starts, int64_t batch, int64_t num_tokens);

struct HeadDims {
  size_t d_k, d_v;
  size_t k_padded() const { return round_up(d_k, widest_panel); }
  size_t v_padded() const { return round_up(d_v, widest_panel); }
};

// What both directions need of a chunk. "Panels" are right operands of tile_gemm-inl.h.
struct ChunkWork {
  float* qk;        // [2 chunk, K]: scaled q, then k; rows after the segment's end are zeros, and change nothing
  float* alpha;     // [chunk, K]: exp g
  float* left;      // [2 chunk, K]: q and k, each times the decay since before its sub-block, or since before the chunk
  float* right;     // [chunk, K]: k times the decay until the end of its sub-block, or of the chunk
  float* totals;    // [num_sub_blocks, K]: the decay of each sub-block
  float* decay;     // [K]: the decay of the chunk
  float* prefix;    // [K]
  float* rows;      // [sub_block, K]
  float* beta;      // [chunk]
  float* minus_a;   // [chunk, chunk]: -A
  float* aqk;       // [chunk, chunk]; zeros above the diagonal
  float* v;         // [chunk, V]
  float* output;    // [2 chunk, V]: (decayed q) S, then (decayed k) S
  float* error;     // [chunk, V]: E
  float* state;     // [K, V]
  float* r_panels;  // [V, chunk]
  float* k_panels;  // [chunk, K], transposed
  float* s_panels;  // [V, K]
};
ChunkWork take_chunk(OpContext& ctx, const HeadDims& dims);

inline HeadDims dims_of(const TensorView& q, const TensorView& v) {
  return {static_cast<size_t>(q.size(3)), static_cast<size_t>(v.size(3))};
}
inline float* state_of(const TensorView& states, const HeadDims& dims, int64_t batch, int64_t heads, int64_t head) {
  return states.as<float>() + (batch * heads + head) * static_cast<int64_t>(dims.d_k * dims.d_v);
}

const char* refuses_head_dims(const TensorView& q, const TensorView& v);

// Without a token the state, or its gradient, passes through.
void copy_states(const TensorView& from, const TensorView& to);

// Each head of each segment, by whichever thread is free: none depends on another. `prepare(threads)` comes first, then
// run(thread, segment, head).
template <class Prepare, class Run>
void for_segments(const std::vector<Segment>& segments, int64_t heads, Prepare&& prepare, Run&& run) {
  const auto count = static_cast<int64_t>(segments.size()) * heads;
  const int threads = lamina::cpu::threads_for(count, 1);
  prepare(threads);
  std::atomic<int64_t> next{0};
  lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
    for (int64_t n = next++; n < count; n = next++) run(thread, segments[static_cast<size_t>(n / heads)], n % heads);
  });
}

}  // namespace lamina::ops::cpu
