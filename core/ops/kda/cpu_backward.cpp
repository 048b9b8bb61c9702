// Backward of Kimi Delta Attention. With dS the gradient of the state after a chunk, and the notation of kda_chunk.h:
//   dR = Aqk^T dO + (k decayed to the end) dS,   Y = dR - A^T beta Y (backward substitution: the gradient of R),
//   dv = beta Y,   dbeta = <Y, E>,   dAqk = dO R^T,   dA = -beta Y R^T,
//   dq_i = decay (dO S^T)_i + sum_j dAqk_ij k_j D_ij,   dk_i = up_i + down_i, where the decay until i enters with a plus or a minus:
//   up_i = -decay (beta Y S^T)_i + sum_j dA_ij k_j D_ij
//   down_j = decay to the end (R dS^T)_j + sum_i (dAqk_ij q_i + dA_ij k_i) D_ij
//   dS before = Diag(decay) dS + (decayed q)^T dO - (decayed k)^T beta Y
// dg_t gets whatever a decay over t carries. So that nothing large cancels under a strong decay, the terms are summed apart:
// from the state before, q dq and k up of tokens i >= t; to the state after, k down of tokens j < t and D_end rowsum(S dS); and
// only within the chunk q dq + k (up - down) of tokens i >= t, without i = j, which no decay carries.
#include <algorithm>
#include <vector>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/kda/cpu_chunk.h"
#include "core/ops/kda/implementations.h"

#define HWY_TARGET_INCLUDE "core/ops/kda/cpu_backward.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/kda/cpu_chunk-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_KDA_BACKWARD
#define LAMINA_CORE_OPS_CPU_KDA_BACKWARD
namespace lamina::ops::cpu {
namespace {

// Of how many chunks the forward results are kept at once (a tenth of a MiB each at head size 128). Longer segments run forward
// once more, keeping only the state before each span.
constexpr size_t chunks_per_span = 128;

struct KeptChunk {
  float *state, *error, *minus_a, *aqk;  // the state before the chunk
};

struct BackwardWork {
  ChunkWork chunk;
  std::vector<KeptChunk> kept;      // one per chunk of a span
  std::vector<float*> span_states;  // the state before each span
  float *e1, *e2;                   // [chunk, K]: decay since before the sub-block; until its end
  float* suffix;                    // [K]
  float* through;                   // [K]: D_end rowsum(S dS)
  float* d_state;                   // [K, V]
  float* d_rows;                    // [2 chunk, V]: dO, then beta Y
  float* d_panels;                  // [V, 2 chunk]: the same
  float* y;                         // [chunk, V]: dR, then Y
  float* r_rows;                    // [chunk, V]
  float* r_transposed;              // [chunk, V] panels
  float* s_transposed;              // [K, V] panels: S, then dS
  float* d_scores;                  // [2 chunk, chunk]: dAqk, then dA
  float *by_state, *by_chunk;       // [2 chunk, K]: dq, then up, through the state before and within the chunk
  float *to_state, *to_chunk;       // [chunk, K]: down, through the state after and within the chunk
  float* right_panels;              // [K, chunk]
  float* left_panels;               // [K, 2 chunk]
};

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

// The forward pass of a chunk as far as backward needs it.
template <class T>
void recompute_chunk(const KdaBackward& args, const HeadDims& dims, const Segment& segment, int64_t head, size_t first,
                     size_t count, const ChunkWork& work) {
  const size_t d_k = dims.d_k, d_v = dims.d_v;
  load_chunk<T>(args, dims, segment, head, first, count, work);
  load_rows<T>(args.v, segment, head, first, count, 1.0f, work.v);
  decay_sub_blocks(dims, work, nullptr, nullptr);
  score(dims, work);
  decay_left(dims, work, 1.0f);
  rows_to_panels(work.state, d_v, d_k, d_v, work.s_panels, d_k * panel_width);
  product<Left::plain>({work.left + chunk * d_k, d_k}, work.s_panels, d_k * panel_width, d_k, chunk, d_v,
                       work.output + chunk * d_v, d_v, false);
  solve(dims, work);
}

// Rows [first, first + num_rows) of panels [width, ...], `panel` apart, times factors[width].
inline void scale_panels(float* panels, size_t panel, size_t first, size_t num_rows, size_t width,
                         const float* factors) {
  for (size_t column = 0; column < width; column += panel_width, panels += panel) {
    for (size_t i = 0; i < std::min(panel_width, width - column); i += num_lanes) {
      const auto factor = at(factors + column + i);
      for (size_t r = first; r < first + num_rows; ++r) {
        float* to = panels + r * panel_width + i;
        put(hn::Mul(at(to), factor), to);
      }
    }
  }
}

// Backward substitution of one sub-block: Y in place, beta Y to rows and panels.
inline void solve_transposed_diagonal(const HeadDims& dims, const BackwardWork& work, const KeptChunk& kept,
                                      size_t block) {
  const FloatTag d;
  const size_t d_v = dims.d_v, first = block * sub_block;
  const float* minus_a = kept.minus_a + first * chunk + first;
  for (size_t column = 0; column < d_v; column += num_lanes) {
    float* y = work.y + first * d_v + column;
    float* rows = work.d_rows + (chunk + first) * d_v + column;
    float* panels =
        work.d_panels + (column / panel_width * 2 * chunk + chunk + first) * panel_width + column % panel_width;
    FloatVector x[sub_block];
#pragma GCC unroll 16
    for (size_t i = 0; i < sub_block; ++i) x[i] = at(y + i * d_v);
#pragma GCC unroll 16
    for (size_t n = 0; n < sub_block; ++n) {
      const size_t i = sub_block - 1 - n;
      const auto value = hn::Mul(x[i], hn::Set(d, work.chunk.beta[first + i]));
      put(x[i], y + i * d_v);
      put(value, rows + i * d_v);
      put(value, panels + i * panel_width);
#pragma GCC unroll 16
      for (size_t l = 0; l < i; ++l) x[l] = hn::MulAdd(hn::Set(d, minus_a[i * chunk + l]), value, x[l]);
    }
  }
}

// Y and beta Y from dO, dS and what forward kept.
inline void solve_transposed(const HeadDims& dims, const BackwardWork& work, const KeptChunk& kept) {
  const size_t d_k = dims.d_k, d_v = dims.d_v, panel = 2 * chunk * panel_width;
  float* state_panels = work.chunk.s_panels;
  rows_to_panels(work.d_state, d_v, d_k, d_v, state_panels, d_k * panel_width);
  product<Left::plain>({work.chunk.right, d_k}, state_panels, d_k * panel_width, d_k, chunk, d_v, work.y, d_v, false);
  product<Left::transposed>({kept.aqk, chunk}, work.d_panels, panel, chunk, chunk, d_v, work.y, d_v, true,
                            Triangle::lower);
  for (size_t block = num_sub_blocks; block-- > 0;) {
    const size_t first = block * sub_block, after = first + sub_block;
    if (after < chunk) {
      product<Left::transposed>({kept.minus_a + after * chunk + first, chunk},
                                work.d_panels + (chunk + after) * panel_width, panel, chunk - after, sub_block, d_v,
                                work.y + first * d_v, d_v, true);
    }
    solve_transposed_diagonal(dims, work, kept, block);
  }
}

// dAqk and dA; what lies above the diagonal is not read.
inline void score_gradients(const HeadDims& dims, const BackwardWork& work, const KeptChunk& kept) {
  const size_t d_v = dims.d_v;
  std::copy_n(kept.error, chunk * d_v, work.r_rows);
  scale_rows(work.r_rows, chunk, d_v, work.chunk.beta);
  transposed_panels(work.r_rows, d_v, chunk, d_v, work.r_transposed);
  product<Left::plain>({work.d_rows, d_v}, work.r_transposed, d_v * panel_width, d_v, 2 * chunk, chunk, work.d_scores,
                       chunk, false);
  float* d_a = work.d_scores + chunk * chunk;
  for (size_t n = 0; n < chunk * chunk; n += num_lanes) put(hn::Neg(at(d_a + n)), d_a + n);
}

// The states' part of dq, up and down, before their decays; and the decay that reaches through the whole chunk.
inline void state_gradients(const HeadDims& dims, const BackwardWork& work, const KeptChunk& kept) {
  const size_t d_k = dims.d_k, d_v = dims.d_v;
  for (size_t i = 0; i < d_k; ++i) {
    auto sum = hn::Zero(FloatTag());
    for (size_t n = i * d_v; n < (i + 1) * d_v; n += num_lanes) {
      sum = hn::MulAdd(at(kept.state + n), at(work.d_state + n), sum);
    }
    work.through[i] = work.chunk.decay[i] * hn::GetLane(hn::SumOfLanes(FloatTag(), sum));
  }
  transposed_panels(work.d_state, d_v, d_k, d_v, work.s_transposed);
  product<Left::plain>({work.r_rows, d_v}, work.s_transposed, d_v * panel_width, d_v, chunk, d_k, work.to_state, d_k,
                       false);
  transposed_panels(kept.state, d_v, d_k, d_v, work.s_transposed);
  product<Left::plain>({work.d_rows, d_v}, work.s_transposed, d_v * panel_width, d_v, 2 * chunk, d_k, work.by_state,
                       d_k, false);
}

// dS before the chunk; `left` holds the decayed q and minus the decayed k.
inline void retreat(const HeadDims& dims, const BackwardWork& work) {
  scale_rows(work.d_state, dims.d_k, dims.d_v, work.chunk.decay);
  product<Left::transposed>({work.chunk.left, dims.d_k}, work.d_panels, 2 * chunk * panel_width, 2 * chunk, dims.d_k,
                            dims.d_v, work.d_state, dims.d_v, true);
}

// dq and up, but for the diagonal blocks; within the chunk up to the decay since the sub-block's beginning.
inline void row_gradients(const HeadDims& dims, const BackwardWork& work) {
  const size_t d_k = dims.d_k, panel = chunk * panel_width;
  float* prefix = work.chunk.prefix;
  std::fill(prefix, prefix + d_k, 1.0f);
  for (size_t block = 0; block < num_sub_blocks; ++block) {
    const size_t first = block * sub_block;
    for (size_t r = first * d_k; r < (first + sub_block) * d_k; r += d_k) {
      float *dq = work.by_state + r, *up = dq + chunk * d_k;
      for (size_t i = 0; i < d_k; i += num_lanes) {
        const auto decay = hn::Mul(at(work.e1 + r + i), at(prefix + i));
        put(hn::Mul(at(dq + i), decay), dq + i);
        put(hn::Neg(hn::Mul(at(up + i), decay)), up + i);
      }
    }
    float *dq = work.by_chunk + first * d_k, *up = dq + chunk * d_k;
    if (first > 0) {
      const float *d_aqk = work.d_scores + first * chunk, *d_a = d_aqk + chunk * chunk;
      product<Left::plain>({d_aqk, chunk}, work.right_panels, panel, first, sub_block, d_k, dq, d_k, false);
      product<Left::plain>({d_a, chunk}, work.right_panels, panel, first, sub_block, d_k, up, d_k, false);
    } else {
      std::fill(dq, dq + sub_block * d_k, 0.0f);
      std::fill(up, up + sub_block * d_k, 0.0f);
    }
    const float* total = work.chunk.totals + block * d_k;
    scale_panels(work.right_panels, panel, 0, first, d_k, total);
    scale_columns(prefix, 1, d_k, total);
  }
}

// down, but for the diagonal blocks; within the chunk up to the decay until the sub-block's end.
inline void column_gradients(const HeadDims& dims, const BackwardWork& work) {
  const size_t d_k = dims.d_k, panel = 2 * chunk * panel_width;
  std::fill(work.suffix, work.suffix + d_k, 1.0f);
  for (size_t block = num_sub_blocks; block-- > 0;) {
    const size_t first = block * sub_block, after = first + sub_block;
    for (size_t r = first * d_k; r < after * d_k; r += d_k) {
      float* down = work.to_state + r;
      for (size_t i = 0; i < d_k; i += num_lanes) {
        put(hn::Mul(at(down + i), hn::Mul(at(work.e2 + r + i), at(work.suffix + i))), down + i);
      }
    }
    float* down = work.to_chunk + first * d_k;
    const float* total = work.chunk.totals + block * d_k;
    if (after < chunk) {
      const float *d_aqk = work.d_scores + after * chunk + first, *d_a = d_aqk + chunk * chunk;
      product<Left::transposed>({d_aqk, chunk}, work.left_panels + after * panel_width, panel, chunk - after, sub_block,
                                d_k, down, d_k, false);
      product<Left::transposed>({d_a, chunk}, work.left_panels + (chunk + after) * panel_width, panel, chunk - after,
                                sub_block, d_k, down, d_k, true);
      scale_panels(work.left_panels, panel, after, chunk - after, d_k, total);
      scale_panels(work.left_panels, panel, chunk + after, chunk - after, d_k, total);
    } else {
      std::fill(down, down + sub_block * d_k, 0.0f);
    }
    scale_columns(work.suffix, 1, d_k, total);
  }
}

// The diagonal block's part of dq and up (j < i) for one vector of channels, after the decay of what is there.
inline void diagonal_row_gradients(const HeadDims& dims, const BackwardWork& work, size_t first, size_t column) {
  const FloatTag d;
  const size_t d_k = dims.d_k, offset = first * d_k + column;
  const float *k = work.chunk.qk + chunk * d_k + offset, *alpha = work.chunk.alpha + offset, *e1 = work.e1 + offset;
  const float *d_aqk = work.d_scores + first * chunk + first, *d_a = d_aqk + chunk * chunk;
  float *dq = work.by_chunk + offset, *up = dq + chunk * d_k;
  FloatVector key[sub_block];  // decayed until i
#pragma GCC unroll 16
  for (size_t i = 0; i < sub_block; ++i) {
    const auto decay = at(alpha + i * d_k), e = at(e1 + i * d_k);
    key[i] = at(k + i * d_k);
    auto sum_q = hn::Mul(e, at(dq + i * d_k)), sum_k = hn::Mul(e, at(up + i * d_k));
#pragma GCC unroll 16
    for (size_t j = 0; j < i; ++j) {
      key[j] = hn::Mul(key[j], decay);
      sum_q = hn::MulAdd(hn::Set(d, d_aqk[i * chunk + j]), key[j], sum_q);
      sum_k = hn::MulAdd(hn::Set(d, d_a[i * chunk + j]), key[j], sum_k);
    }
    put(sum_q, dq + i * d_k);
    put(sum_k, up + i * d_k);
  }
}

// Likewise of down (i > j), with the rows `x`, q or k, and the scores' gradients that belong to them. `decayed`: what is there is
// decayed already.
template <bool decayed>
inline void diagonal_column_gradients(const HeadDims& dims, const BackwardWork& work, size_t first, size_t column,
                                      const float* x, const float* d_scores) {
  const FloatTag d;
  const size_t d_k = dims.d_k, offset = first * d_k + column;
  const float *alpha = work.chunk.alpha + offset, *e2 = work.e2 + offset;
  float* down = work.to_chunk + offset;
  d_scores += first * chunk + first;
  FloatVector row[sub_block];  // decayed since j
#pragma GCC unroll 16
  for (size_t n = 0; n < sub_block; ++n) {
    const size_t j = sub_block - 1 - n;
    auto sum = at(down + j * d_k);
    if (!decayed) sum = hn::Mul(sum, at(e2 + j * d_k));
    row[j] = at(x + offset + j * d_k);
    if (n > 0) {
      const auto decay = at(alpha + (j + 1) * d_k);
#pragma GCC unroll 16
      for (size_t i = j + 1; i < sub_block; ++i) {
        row[i] = hn::Mul(row[i], decay);
        sum = hn::MulAdd(hn::Set(d, d_scores[i * chunk + j]), row[i], sum);
      }
    }
    put(sum, down + j * d_k);
  }
}

inline void diagonal_gradients(const HeadDims& dims, const BackwardWork& work) {
  const float *q = work.chunk.qk, *k = q + chunk * dims.d_k;
  for (size_t first = 0; first < chunk; first += sub_block) {
    for (size_t column = 0; column < dims.d_k; column += num_lanes) {
      diagonal_row_gradients(dims, work, first, column);
      diagonal_column_gradients<false>(dims, work, first, column, q, work.d_scores);
      diagonal_column_gradients<true>(dims, work, first, column, k, work.d_scores + chunk * chunk);
    }
  }
}

// dg, dq and dk.
template <class T>
void write_key_gradients(const KdaBackward& args, const HeadDims& dims, const Segment& segment, int64_t head,
                         size_t first, size_t count, const BackwardWork& work) {
  const FloatTag d;
  const size_t d_k = dims.d_k;
  float* sum = work.suffix;
  std::copy_n(work.through, d_k, sum);
  for (size_t r = 0; r < count; ++r) {
    float* dg = row_of<float>(args.dg, segment.batch, head, first + r);
    const float *k = work.chunk.qk + (chunk + r) * d_k, *down = work.to_state + r * d_k;
    prefetch_row<float>(args.dg, segment, head, first + r + rows_ahead);
    for (size_t i = 0; i < d_k; i += num_lanes) {
      put(at(sum + i), dg + i);
      put(hn::MulAdd(at(k + i), at(down + i), at(sum + i)), sum + i);
    }
  }
  std::fill(sum, sum + d_k, 0.0f);
  for (size_t r = count; r-- > 0;) {
    const size_t token = first + r, row = r * d_k;
    const float *q = work.chunk.qk + row, *k = q + chunk * d_k;
    float *dq = work.by_state + row, *up = dq + chunk * d_k;
    const float *dq_chunk = work.by_chunk + row, *up_chunk = dq_chunk + chunk * d_k;
    const float *down = work.to_state + row, *down_chunk = work.to_chunk + row;
    float* dg = row_of<float>(args.dg, segment.batch, head, token);
    if (r >= rows_ahead) {
      prefetch_row<T>(args.dq, segment, head, token - rows_ahead);
      prefetch_row<T>(args.dk, segment, head, token - rows_ahead);
    }
    const auto own = hn::Set(d, work.d_scores[r * chunk + r]);  // dAqk_ii
    for (size_t i = 0; i < d_k; i += num_lanes) {
      const auto q_i = at(q + i), k_i = at(k + i);
      const auto dq_i = hn::Add(at(dq + i), at(dq_chunk + i)), up_i = hn::Add(at(up + i), at(up_chunk + i));
      const auto carried = hn::MulAdd(q_i, dq_i, hn::Mul(k_i, hn::Sub(up_i, at(down_chunk + i))));
      const auto total = hn::Add(at(sum + i), carried);
      put(total, sum + i);
      put(hn::Add(at(dg + i), total), dg + i);
      put(hn::MulAdd(own, k_i, dq_i), dq + i);
      const auto down_i = hn::Add(at(down + i), at(down_chunk + i));
      put(hn::MulAdd(own, q_i, hn::Add(up_i, down_i)), up + i);
    }
    write_row(dq, d_k, static_cast<float>(args.scale), row_of<T>(args.dq, segment.batch, head, token));
    write_row(up, d_k, 1.0f, row_of<T>(args.dk, segment.batch, head, token));
  }
}

template <class T>
void write_value_gradients(const KdaBackward& args, const HeadDims& dims, const Segment& segment, int64_t head,
                           size_t first, size_t count, const BackwardWork& work, const KeptChunk& kept) {
  const FloatTag d;
  const size_t d_v = dims.d_v;
  for (size_t r = 0; r < count; ++r) {
    prefetch_row<T>(args.dv, segment, head, first + r + rows_ahead);
    write_row(work.d_rows + (chunk + r) * d_v, d_v, 1.0f, row_of<T>(args.dv, segment.batch, head, first + r));
    auto sum = hn::Zero(d);
    for (size_t i = r * d_v; i < (r + 1) * d_v; i += num_lanes) {
      sum = hn::MulAdd(at(work.y + i), at(kept.error + i), sum);
    }
    *row_of<float>(args.dbeta, segment.batch, head, first + r) = hn::GetLane(hn::SumOfLanes(d, sum));
  }
}

template <class T>
void backward_chunk(const KdaBackward& args, const HeadDims& dims, const Segment& segment, int64_t head, size_t first,
                    size_t count, const BackwardWork& work, const KeptChunk& kept) {
  const size_t d_k = dims.d_k, d_v = dims.d_v;
  load_chunk<T>(args, dims, segment, head, first, count, work.chunk);
  load_rows<T>(args.d_o, segment, head, first, count, 1.0f, work.d_rows);
  rows_to_panels(work.d_rows, d_v, chunk, d_v, work.d_panels, 2 * chunk * panel_width);
  decay_sub_blocks(dims, work.chunk, work.e1, work.e2);
  rows_to_panels(work.chunk.right, d_k, chunk, d_k, work.right_panels, chunk * panel_width);
  rows_to_panels(work.chunk.left, d_k, 2 * chunk, d_k, work.left_panels, 2 * chunk * panel_width);
  decay_left(dims, work.chunk, -1.0f);
  std::fill(work.suffix, work.suffix + d_k, 1.0f);
  for (size_t block = num_sub_blocks; block-- > 0;) {
    scale_columns(work.chunk.right + block * sub_block * d_k, sub_block, d_k, work.suffix);
    scale_columns(work.suffix, 1, d_k, work.chunk.totals + block * d_k);
  }
  solve_transposed(dims, work, kept);
  score_gradients(dims, work, kept);
  state_gradients(dims, work, kept);
  retreat(dims, work);
  row_gradients(dims, work);
  column_gradients(dims, work);
  diagonal_gradients(dims, work);
  write_key_gradients<T>(args, dims, segment, head, first, count, work);
  write_value_gradients<T>(args, dims, segment, head, first, count, work, kept);
}

// `num_chunks` chunks of a segment from `first_chunk`, whose state is in work.chunk.state; dS from after them to before them.
template <class T>
void backward_span(const KdaBackward& args, const HeadDims& dims, const Segment& segment, int64_t head,
                   size_t first_chunk, size_t num_chunks, const BackwardWork& work) {
  const auto begin = static_cast<size_t>(segment.begin), end = static_cast<size_t>(segment.end);
  const auto each = [&](size_t n, auto&& run) {
    const size_t first = begin + (first_chunk + n) * chunk;
    run(first, std::min(chunk, end - first));
  };
  for (size_t n = 0; n < num_chunks; ++n) {
    const KeptChunk& kept = work.kept[n];
    std::copy_n(work.chunk.state, dims.d_k * dims.d_v, kept.state);
    ChunkWork to_kept = work.chunk;
    to_kept.error = kept.error, to_kept.minus_a = kept.minus_a, to_kept.aqk = kept.aqk;
    each(n, [&](size_t first, size_t count) {
      recompute_chunk<T>(args, dims, segment, head, first, count, to_kept);
      advance(dims, to_kept);
    });
  }
  for (size_t n = num_chunks; n-- > 0;) {
    each(n, [&](size_t first, size_t count) {
      backward_chunk<T>(args, dims, segment, head, first, count, work, work.kept[n]);
    });
  }
}

template <class T>
void backward_segment(const KdaBackward& args, const HeadDims& dims, const Segment& segment, int64_t head,
                      const BackwardWork& work) {
  const int64_t heads = args.q.size(2);
  const size_t tokens = static_cast<size_t>(segment.end - segment.begin), size = dims.d_k * dims.d_v;
  const size_t num_chunks = (tokens + chunk - 1) / chunk, num_spans = (num_chunks - 1) / chunks_per_span + 1;
  load_state(args.initial_state, segment.first, dims, segment.batch, heads, head, work.chunk.state);
  for (size_t n = 0; n + 1 < num_spans; ++n) {
    std::copy_n(work.chunk.state, size, work.span_states[n]);
    for (size_t i = 0; i < chunks_per_span; ++i) {  // all of them whole
      const size_t first = static_cast<size_t>(segment.begin) + (n * chunks_per_span + i) * chunk;
      recompute_chunk<T>(args, dims, segment, head, first, chunk, work.chunk);
      advance(dims, work.chunk);
    }
  }
  load_state(args.d_final_state, segment.last, dims, segment.batch, heads, head, work.d_state);
  for (size_t n = num_spans; n-- > 0;) {
    if (n + 1 < num_spans) std::copy_n(work.span_states[n], size, work.chunk.state);
    const size_t first = n * chunks_per_span;
    backward_span<T>(args, dims, segment, head, first, std::min(chunks_per_span, num_chunks - first), work);
  }
  if (segment.first && args.d_initial_state) {
    std::copy_n(work.d_state, size, state_of(args.d_initial_state, dims, segment.batch, heads, head));
  }
}

void kda_segment_backward(const KdaBackward& args, const HeadDims& dims, const Segment& segment, int64_t head,
                          const BackwardWork& work) {
  if (args.q.dtype == DType::bf16)
    backward_segment<bf16>(args, dims, segment, head, work);
  else
    backward_segment<float>(args, dims, segment, head, work);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(kda_segment_backward);

namespace {

BackwardWork take_backward(OpContext& ctx, const HeadDims& dims, size_t num_chunks) {
  const size_t d_k = dims.d_k, d_v = dims.d_v;
  BackwardWork work;
  work.chunk = take_chunk(ctx, dims);
  for (size_t n = 0; n < std::min(num_chunks, chunks_per_span); ++n) {
    work.kept.push_back({take_floats(ctx, d_k * d_v), take_floats(ctx, chunk * d_v), take_floats(ctx, chunk * chunk),
                         take_floats(ctx, chunk * chunk)});
  }
  for (size_t n = chunks_per_span; n < num_chunks; n += chunks_per_span) {
    work.span_states.push_back(take_floats(ctx, d_k * d_v));
  }
  work.e1 = take_floats(ctx, chunk * d_k);
  work.e2 = take_floats(ctx, chunk * d_k);
  work.suffix = take_floats(ctx, d_k);
  work.through = take_floats(ctx, d_k);
  work.d_state = take_floats(ctx, d_k * d_v);
  work.d_rows = take_floats(ctx, 2 * chunk * d_v);
  work.d_panels = take_floats(ctx, 2 * chunk * dims.v_padded());
  work.y = take_floats(ctx, chunk * d_v);
  work.r_rows = take_floats(ctx, chunk * d_v);
  work.r_transposed = take_floats(ctx, chunk * d_v);
  work.s_transposed = take_floats(ctx, dims.k_padded() * d_v);
  work.d_scores = take_floats(ctx, 2 * chunk * chunk);
  work.by_state = take_floats(ctx, 2 * chunk * d_k);
  work.by_chunk = take_floats(ctx, 2 * chunk * d_k);
  work.to_state = take_floats(ctx, chunk * d_k);
  work.to_chunk = take_floats(ctx, chunk * d_k);
  work.right_panels = take_floats(ctx, chunk * dims.k_padded());
  work.left_panels = take_floats(ctx, 2 * chunk * dims.k_padded());
  return work;
}

}  // namespace

const char* kda_backward_refuses(const KdaBackward& args) {
  return refuses_head_dims(args.q, args.v);
}

void kda_backward(OpContext& ctx, const KdaBackward& args) {
  if (args.q.size(1) == 0) return copy_states(args.d_final_state, args.d_initial_state);
  const HeadDims dims = dims_of(args.q, args.v);
  const std::vector<Segment> segments = segments_of(args.document_starts, args.q.size(0), args.q.size(1));
  if (segments.empty()) return;
  const auto longest = static_cast<size_t>(segments.front().end - segments.front().begin);
  std::vector<BackwardWork> work;
  const auto run = HWY_DYNAMIC_DISPATCH(kda_segment_backward);
  for_segments(
      segments, args.q.size(2),
      [&](int threads) {
        for (int thread = 0; thread < threads; ++thread) {
          work.push_back(take_backward(ctx, dims, (longest + chunk - 1) / chunk));
        }
      },
      [&](int thread, const Segment& segment, int64_t head) {
        run(args, dims, segment, head, work[static_cast<size_t>(thread)]);
      });
}

}  // namespace lamina::ops::cpu
#endif
