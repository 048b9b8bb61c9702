#include <algorithm>
#include <vector>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/cpu/attention.h"
#include "core/ops/cpu/attention_tiles.h"

#define HWY_TARGET_INCLUDE "core/ops/cpu/attention_backward.cpp"
#include "core/ops/cpu/simd.h"
#include "core/ops/cpu/simd_math-inl.h"
#include "core/ops/cpu/tile_gemm-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_ATTENTION_BACKWARD
#define LAMINA_CORE_OPS_CPU_ATTENTION_BACKWARD
namespace lamina::ops::cpu {
namespace {

// One head, packed for the five products: read by every thread that works on it. q is scaled.
struct PackedHead {
  float *q, *d_o;  // rows [T, qk4], [T, v4]
  float *q_panels, *k_panels, *d_o_panels;
  float *k_transposed, *v_transposed;  // panels of the transposed matrix
  float* delta;                        // [T]: <d_o, o>
};

// One thread's.
struct BackwardTile {
  float* rows;                  // [tile, max(qk4, v4)], on their way to a panel
  float *probability, *dscore;  // [tile, tile]
  float *dk, *dv;               // [tile, qk_padded], [tile, v_padded]
  float* dq;                    // [T, qk_padded]: the sum over the key tiles of this thread
};

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

HeadShape shape_of(const AttentionBackward& args) {
  return {static_cast<size_t>(args.q.size(1)), static_cast<size_t>(args.q.size(3)),
          static_cast<size_t>(args.v.size(3))};
}

// `count` rows of a view, converted; rows up to a whole tile are zeros.
template <class T>
void convert_tile(const TensorView& view, const Share& share, size_t first, size_t count, size_t padded, float factor,
                  float* out) {
  const auto width = static_cast<size_t>(view.size(3));
  for (size_t r = 0; r < count; ++r) {
    convert_row(row_of<T>(view, share.batch, share.head, first + r), width, padded, factor, out + r * padded);
  }
  std::fill(out + count * padded, out + tile * padded, 0.0f);
}

template <class T>
void pack(const AttentionBackward& args, const Share& share, const PackedHead& packed, const BackwardTile& work) {
  const HeadShape shape = shape_of(args);
  const size_t qk4 = shape.qk4(), v4 = shape.v4(), panel = shape.padded_tokens() * panel_width;
  for (size_t index = 0; index < shape.num_tiles(); ++index) {
    if (!share.owns(index)) continue;
    const size_t first = index * tile, count = shape.rows_of_tile(index);
    convert_tile<T>(args.q, share, first, count, qk4, static_cast<float>(args.scale), packed.q + first * qk4);
    rows_to_panels(packed.q + first * qk4, qk4, count, shape.d_qk, packed.q_panels + first * panel_width, panel);
    convert_tile<T>(args.d_o, share, first, count, v4, 1.0f, packed.d_o + first * v4);
    rows_to_panels(packed.d_o + first * v4, v4, count, shape.d_v, packed.d_o_panels + first * panel_width, panel);
    convert_tile<T>(args.k, share, first, count, qk4, 1.0f, work.rows);
    rows_to_panels(work.rows, qk4, count, shape.d_qk, packed.k_panels + first * panel_width, panel);
    rows_to_transposed_panels(work.rows, qk4, tile, qk4, packed.k_transposed + first * qk4);
    convert_tile<T>(args.v, share, first, count, v4, 1.0f, work.rows);
    rows_to_transposed_panels(work.rows, v4, tile, v4, packed.v_transposed + first * v4);
    for (size_t r = 0; r < count; ++r) {
      const T* o = row_of<T>(args.o, share.batch, share.head, first + r);
      const float* d_o = packed.d_o + (first + r) * v4;
      float sum = 0;
      for (size_t i = 0; i < shape.d_v; ++i) sum += d_o[i] * static_cast<float>(o[i]);
      packed.delta[first + r] = sum;
    }
  }
}

// Scores to probabilities, and their gradient to that of the scores: P = exp(S - lse), dS = P (dP - delta). Zeros outside [first, count).
void score_gradients(float* probability, float* dscore, size_t first, size_t count, float lse, float delta) {
  const FloatTag d;
  const auto shift = hn::Set(d, lse), mean = hn::Set(d, delta);
  size_t i = 0;
  for (; i < count; i += num_lanes) {
    auto p = fast_exp(d, hn::Sub(hn::Load(d, probability + i), shift));
    auto ds = hn::Mul(p, hn::Sub(hn::Load(d, dscore + i), mean));
    if (i + num_lanes > count) {
      const auto visible = hn::FirstN(d, count - i);
      p = hn::IfThenElseZero(visible, p);
      ds = hn::IfThenElseZero(visible, ds);
    }
    if (i < first) {
      const auto before = hn::FirstN(d, first - i);
      p = hn::IfThenZeroElse(before, p);
      ds = hn::IfThenZeroElse(before, ds);
    }
    hn::Store(p, d, probability + i);
    hn::Store(ds, d, dscore + i);
  }
  for (; i < tile; i += num_lanes) {
    hn::Store(hn::Zero(d), d, probability + i);
    hn::Store(hn::Zero(d), d, dscore + i);
  }
}

// All queries that see one tile of keys: its dk and dv, and its share of dq.
void key_tile(const AttentionBackward& args, const Share& share, const PackedHead& packed, const BackwardTile& work,
              size_t keys) {
  const HeadShape shape = shape_of(args);
  const size_t qk4 = shape.qk4(), v4 = shape.v4(), qk_padded = shape.qk_padded(), v_padded = shape.v_padded();
  const size_t num_keys = shape.rows_of_tile(keys), key_rows = round_up(num_keys, block_rows);
  const size_t panel = shape.padded_tokens() * panel_width, first_key = keys * tile;
  const float* lse = args.lse.as<float>() + (share.batch * args.q.size(2) + share.head) * args.q.size(1);
  std::fill(work.dk, work.dk + key_rows * qk_padded, 0.0f);
  std::fill(work.dv, work.dv + key_rows * v_padded, 0.0f);
  for (size_t index = keys; index < shape.num_tiles(); ++index) {
    const Mask mask = index == keys ? Mask::columns_after_row : Mask::none;
    const size_t first = index * tile, count = shape.rows_of_tile(index), rows = round_up(count, block_rows);
    if (first_key_of(args.document_starts, share.batch, first) >= first_key + tile) break;
    multiply_masked_output({packed.q + first * qk4, qk4}, packed.k_transposed + first_key * qk4, qk4 * panel_width,
                           shape.d_qk, rows, num_keys, mask, work.probability, tile);
    multiply_masked_output({packed.d_o + first * v4, v4}, packed.v_transposed + first_key * v4, v4 * panel_width,
                           shape.d_v, rows, num_keys, mask, work.dscore, tile);
    for (size_t r = 0; r < count; ++r) {
      const size_t start = first_key_of(args.document_starts, share.batch, first + r);
      const size_t from = start > first_key ? start - first_key : 0;
      score_gradients(work.probability + r * tile, work.dscore + r * tile, from, mask == Mask::none ? num_keys : r + 1,
                      lse[first + r], packed.delta[first + r]);
    }
    multiply_masked_left<Left::transposed>({work.probability, tile}, packed.d_o_panels + first * panel_width, panel,
                                           count, key_rows, shape.d_v, mask, work.dv, v_padded);
    multiply_masked_left<Left::transposed>({work.dscore, tile}, packed.q_panels + first * panel_width, panel, count,
                                           key_rows, shape.d_qk, mask, work.dk, qk_padded);
    multiply_masked_left<Left::plain>({work.dscore, tile}, packed.k_panels + first_key * panel_width, panel, num_keys,
                                      rows, shape.d_qk, mask, work.dq + first * qk_padded, qk_padded);
  }
}

template <class T>
void key_tiles(const AttentionBackward& args, const Share& share, const PackedHead& packed, const BackwardTile& work) {
  const HeadShape shape = shape_of(args);
  std::fill(work.dq, work.dq + shape.padded_tokens() * shape.qk_padded(), 0.0f);
  for (size_t keys = 0; keys < shape.num_tiles(); ++keys) {
    if (!share.owns(keys)) continue;
    key_tile(args, share, packed, work, keys);
    for (size_t r = 0; r < shape.rows_of_tile(keys); ++r) {
      const size_t token = keys * tile + r;
      // dk = dS^T (scale q): the packed q carries the scale.
      write_row(work.dk + r * shape.qk_padded(), shape.d_qk, 1.0f, row_of<T>(args.dk, share.batch, share.head, token));
      write_row(work.dv + r * shape.v_padded(), shape.d_v, 1.0f, row_of<T>(args.dv, share.batch, share.head, token));
    }
  }
}

// The sum of the threads' shares of dq, in the order of the threads.
template <class T>
void sum_dq(const AttentionBackward& args, const Share& share, const BackwardTile* works, size_t num_works) {
  const FloatTag d;
  const HeadShape shape = shape_of(args);
  for (size_t index = 0; index < shape.num_tiles(); ++index) {
    if (!share.owns(index)) continue;
    for (size_t r = 0; r < shape.rows_of_tile(index); ++r) {
      const size_t token = index * tile + r, at = token * shape.qk_padded();
      for (size_t other = 1; other < num_works; ++other) {
        for (size_t i = 0; i < shape.qk_padded(); i += num_lanes) {
          const auto sum = hn::Add(hn::Load(d, works[0].dq + at + i), hn::Load(d, works[other].dq + at + i));
          hn::Store(sum, d, works[0].dq + at + i);
        }
      }
      write_row(works[0].dq + at, shape.d_qk, static_cast<float>(args.scale),
                row_of<T>(args.dq, share.batch, share.head, token));
    }
  }
}

void backward_pack(const AttentionBackward& args, const Share& share, const PackedHead& packed,
                   const BackwardTile& work) {
  if (args.q.dtype == DType::bf16)
    pack<bf16>(args, share, packed, work);
  else
    pack<float>(args, share, packed, work);
}
void backward_tiles(const AttentionBackward& args, const Share& share, const PackedHead& packed,
                    const BackwardTile& work) {
  if (args.q.dtype == DType::bf16)
    key_tiles<bf16>(args, share, packed, work);
  else
    key_tiles<float>(args, share, packed, work);
}
void backward_sum(const AttentionBackward& args, const Share& share, const BackwardTile* works, size_t num_works) {
  if (args.q.dtype == DType::bf16)
    sum_dq<bf16>(args, share, works, num_works);
  else
    sum_dq<float>(args, share, works, num_works);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(backward_pack);
HWY_EXPORT(backward_tiles);
HWY_EXPORT(backward_sum);

namespace {

PackedHead take_head(OpContext& ctx, const HeadShape& shape) {
  const size_t tokens = shape.padded_tokens();
  return {take_floats(ctx, tokens * shape.qk4()),       take_floats(ctx, tokens * shape.v4()),
          take_floats(ctx, tokens * shape.qk_padded()), take_floats(ctx, tokens * shape.qk_padded()),
          take_floats(ctx, tokens * shape.v_padded()),  take_floats(ctx, tokens * shape.qk4()),
          take_floats(ctx, tokens * shape.v4()),        take_floats(ctx, tokens)};
}

BackwardTile take_tile(OpContext& ctx, const HeadShape& shape) {
  return {take_floats(ctx, tile * std::max(shape.qk4(), shape.v4())),
          take_floats(ctx, tile * tile),
          take_floats(ctx, tile * tile),
          take_floats(ctx, tile * shape.qk_padded()),
          take_floats(ctx, tile * shape.v_padded()),
          take_floats(ctx, shape.padded_tokens() * shape.qk_padded())};
}

}  // namespace

const char* refuses(const AttentionBackward& args) {
  return args.q.dtype == DType::f64 ? "vector kernels are for float32 and bf16" : nullptr;
}

void attention_backward(OpContext& ctx, const AttentionBackward& args) {
  if (args.q.num_elements() == 0 && args.o.num_elements() == 0) return;
  const HeadShape shape{static_cast<size_t>(args.q.size(1)), static_cast<size_t>(args.q.size(3)),
                        static_cast<size_t>(args.v.size(3))};
  const int64_t pairs = args.q.size(0) * args.q.size(2);
  const int threads = lamina::cpu::threads_for(pairs * static_cast<int64_t>(shape.num_tiles()), 1);
  std::vector<PackedHead> packed;
  std::vector<BackwardTile> work;
  for (int thread = 0; thread < threads; ++thread) {
    packed.push_back(take_head(ctx, shape));
    work.push_back(take_tile(ctx, shape));
  }
  for_heads(
      args.q.size(0), args.q.size(2), threads,
      [&](int thread, int64_t batch, int64_t head) {
        const auto slot = static_cast<size_t>(thread);
        const Share all{batch, head, 0, 1};
        HWY_DYNAMIC_DISPATCH(backward_pack)(args, all, packed[slot], work[slot]);
        HWY_DYNAMIC_DISPATCH(backward_tiles)(args, all, packed[slot], work[slot]);
        HWY_DYNAMIC_DISPATCH(backward_sum)(args, all, &work[slot], 1);
      },
      [&](int64_t batch, int64_t head) {
        const auto together = [&](auto&& stage) {
          lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
            stage(Share{batch, head, static_cast<size_t>(thread), static_cast<size_t>(threads)},
                  work[static_cast<size_t>(thread)]);
          });
        };
        together([&](const Share& share, const BackwardTile& own) {
          HWY_DYNAMIC_DISPATCH(backward_pack)(args, share, packed[0], own);
        });
        together([&](const Share& share, const BackwardTile& own) {
          HWY_DYNAMIC_DISPATCH(backward_tiles)(args, share, packed[0], own);
        });
        together([&](const Share& share, const BackwardTile&) {
          HWY_DYNAMIC_DISPATCH(backward_sum)(args, share, work.data(), work.size());
        });
      });
}

}  // namespace lamina::ops::cpu
#endif
