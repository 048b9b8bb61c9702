#include <algorithm>
#include <atomic>
#include <vector>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/attention/cpu_tiles.h"
#include "core/ops/attention/implementations.h"

#define HWY_TARGET_INCLUDE "core/ops/attention/cpu_backward.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_math-inl.h"
#include "core/ops/simd/tile_gemm-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_ATTENTION_BACKWARD
#define LAMINA_CORE_OPS_CPU_ATTENTION_BACKWARD
namespace lamina::ops::cpu {
namespace {

// One head, packed for the five products, and its dq: shared by all threads that work on it. q is scaled.
struct PackedHead {
  float *q, *d_o;  // rows [T, qk4], [T, v4]
  float *q_panels, *k_panels, *d_o_panels;
  float *k_transposed, *v_transposed;  // panels of the transposed matrix
  float* delta;                        // [T]: <d_o, o>
  float* dq;                           // [T, qk_padded]
};

// One thread's.
struct BackwardTile {
  float* rows;                  // [tile, max(qk4, v4)], on their way to a panel
  float *probability, *dscore;  // [tile, tile]
  float *dk, *dv;               // [tile, qk_padded], [tile, v_padded]
};

// Where several threads share a head, each has its own key tiles, but a query tile's dq is summed in the order of the key tiles
// whoever has them: a key tile comes to a query tile when the one before it has been there. So the bits don't depend on the
// number of threads. Threads take key tiles in ascending order; so the lowest that is not finished never waits.
class TileOrder {
 public:
  explicit TileOrder(size_t num_tiles) : passed_(num_tiles) {}

  void wait_for_turn(size_t keys, size_t queries) {
    if (keys == 0) return;
    std::atomic<size_t>& before = passed_[keys - 1];
    for (size_t at = before.load(std::memory_order_acquire); at <= queries;
         at = before.load(std::memory_order_acquire)) {
      before.wait(at, std::memory_order_acquire);
    }
  }
  // This key tile adds nothing more to query tiles below `queries`.
  void pass(size_t keys, size_t queries) {
    passed_[keys].store(queries, std::memory_order_release);
    passed_[keys].notify_all();
  }

 private:
  std::vector<std::atomic<size_t>> passed_;
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
    prefetch_later_row<T>(view, share.batch, share.head, first + r);
    convert_row(row_of<T>(view, share.batch, share.head, first + r), width, padded, factor, out + r * padded);
  }
  std::fill(out + count * padded, out + tile * padded, 0.0f);
}

template <class T>
float dot(const float* a, const T* b, size_t count) {
  const FloatTag d;
  auto sum = hn::Zero(d);
  size_t i = 0;
  for (; i + num_lanes <= count; i += num_lanes) sum = hn::MulAdd(hn::LoadU(d, a + i), load(d, b + i), sum);
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < count; ++i) total += a[i] * static_cast<float>(b[i]);
  return total;
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
      prefetch_later_row<T>(args.o, share.batch, share.head, first + r);
      packed.delta[first + r] =
          dot(packed.d_o + (first + r) * v4, row_of<T>(args.o, share.batch, share.head, first + r), shape.d_v);
    }
    std::fill_n(packed.dq + first * shape.qk_padded(), tile * shape.qk_padded(), 0.0f);
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

// All queries that see one tile of keys: its dk and dv, and its share of dq. `order`, or null, is for heads that are shared.
void key_tile(const AttentionBackward& args, const Share& share, const PackedHead& packed, const BackwardTile& work,
              size_t keys, TileOrder* order) {
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
    if (order != nullptr) order->wait_for_turn(keys, index);
    multiply_masked_left<Left::plain>({work.dscore, tile}, packed.k_panels + first_key * panel_width, panel, num_keys,
                                      rows, shape.d_qk, mask, packed.dq + first * qk_padded, qk_padded);
    if (order != nullptr) order->pass(keys, index + 1);
  }
  if (order != nullptr) order->pass(keys, shape.num_tiles());
}

template <class T>
void write_key_tile(const AttentionBackward& args, const Share& share, const BackwardTile& work, size_t keys) {
  const HeadShape shape = shape_of(args);
  for (size_t r = 0; r < shape.rows_of_tile(keys); ++r) {
    const size_t token = keys * tile + r;
    // dk = dS^T (scale q): the packed q carries the scale.
    write_row(work.dk + r * shape.qk_padded(), shape.d_qk, 1.0f, row_of<T>(args.dk, share.batch, share.head, token));
    write_row(work.dv + r * shape.v_padded(), shape.d_v, 1.0f, row_of<T>(args.dv, share.batch, share.head, token));
  }
}

template <class T>
void write_dq(const AttentionBackward& args, const Share& share, const PackedHead& packed) {
  const HeadShape shape = shape_of(args);
  for (size_t index = 0; index < shape.num_tiles(); ++index) {
    if (!share.owns(index)) continue;
    for (size_t r = 0; r < shape.rows_of_tile(index); ++r) {
      const size_t token = index * tile + r;
      write_row(packed.dq + token * shape.qk_padded(), shape.d_qk, static_cast<float>(args.scale),
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
void backward_tile(const AttentionBackward& args, const Share& share, const PackedHead& packed,
                   const BackwardTile& work, size_t keys, TileOrder* order) {
  key_tile(args, share, packed, work, keys, order);
  if (args.q.dtype == DType::bf16)
    write_key_tile<bf16>(args, share, work, keys);
  else
    write_key_tile<float>(args, share, work, keys);
}
void backward_dq(const AttentionBackward& args, const Share& share, const PackedHead& packed) {
  if (args.q.dtype == DType::bf16)
    write_dq<bf16>(args, share, packed);
  else
    write_dq<float>(args, share, packed);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(backward_pack);
HWY_EXPORT(backward_tile);
HWY_EXPORT(backward_dq);

namespace {

PackedHead take_head(OpContext& ctx, const HeadShape& shape) {
  const size_t tokens = shape.padded_tokens();
  return {take_floats(ctx, tokens * shape.qk4()),       take_floats(ctx, tokens * shape.v4()),
          take_floats(ctx, tokens * shape.qk_padded()), take_floats(ctx, tokens * shape.qk_padded()),
          take_floats(ctx, tokens * shape.v_padded()),  take_floats(ctx, tokens * shape.qk4()),
          take_floats(ctx, tokens * shape.v4()),        take_floats(ctx, tokens),
          take_floats(ctx, tokens * shape.qk_padded())};
}

BackwardTile take_tile(OpContext& ctx, const HeadShape& shape) {
  return {take_floats(ctx, tile * std::max(shape.qk4(), shape.v4())), take_floats(ctx, tile * tile),
          take_floats(ctx, tile * tile), take_floats(ctx, tile * shape.qk_padded()),
          take_floats(ctx, tile * shape.v_padded())};
}

// The heads [first, first + count), which all threads work on. A head's key tiles follow each other at a distance, so that those
// who have them seldom wait.
void run_shared(const AttentionBackward& args, const HeadShape& shape, int64_t first, int64_t count,
                const std::vector<PackedHead>& packed, const std::vector<BackwardTile>& work) {
  const auto threads = static_cast<int>(work.size());
  const size_t num_heads = static_cast<size_t>(count);
  const auto share_of = [&](int thread, size_t n) {
    const int64_t pair = first + static_cast<int64_t>(n);
    return Share{pair / args.q.size(2), pair % args.q.size(2), static_cast<size_t>(thread), work.size()};
  };
  lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
    for (size_t n = 0; n < num_heads; ++n) {
      HWY_DYNAMIC_DISPATCH(backward_pack)(args, share_of(thread, n), packed[n], work[static_cast<size_t>(thread)]);
    }
  });
  std::vector<TileOrder> orders;
  for (size_t n = 0; n < num_heads; ++n) orders.emplace_back(shape.num_tiles());
  std::atomic<size_t> next = 0;
  lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
    const BackwardTile& own = work[static_cast<size_t>(thread)];
    for (size_t at = next++; at < num_heads * shape.num_tiles(); at = next++) {
      const size_t n = at % num_heads;
      HWY_DYNAMIC_DISPATCH(backward_tile)(args, share_of(thread, n), packed[n], own, at / num_heads, &orders[n]);
    }
  });
  lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
    for (size_t n = 0; n < num_heads; ++n) {
      HWY_DYNAMIC_DISPATCH(backward_dq)(args, share_of(thread, n), packed[n]);
    }
  });
}

}  // namespace

const char* attention_backward_refuses(const AttentionBackward& args) {
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
        for (size_t keys = 0; keys < shape.num_tiles(); ++keys) {
          HWY_DYNAMIC_DISPATCH(backward_tile)(args, all, packed[slot], work[slot], keys, nullptr);
        }
        HWY_DYNAMIC_DISPATCH(backward_dq)(args, all, packed[slot]);
      },
      [&](int64_t first, int64_t count) { run_shared(args, shape, first, count, packed, work); });
}

}  // namespace lamina::ops::cpu
#endif
