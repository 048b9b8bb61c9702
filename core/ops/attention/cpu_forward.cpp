#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/attention/cpu_tiles.h"
#include "core/ops/attention/implementations.h"

#define HWY_TARGET_INCLUDE "core/ops/attention/cpu_forward.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/attention/online_softmax-inl.h"
#include "core/ops/simd/simd_math-inl.h"
#include "core/ops/simd/tile_gemm-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_ATTENTION_FORWARD
#define LAMINA_CORE_OPS_CPU_ATTENTION_FORWARD
namespace lamina::ops::cpu {
namespace {

// One head, packed: read by every thread that works on it.
struct PackedKeys {
  float* k_transposed;  // panels of k^T
  float* v;             // panels of v
};

// One thread's tile.
struct ForwardTile {
  float* rows;     // [tile, max(qk4, v_padded)]: queries; or rows on their way to a panel
  float* scores;   // [tile, tile]
  float* o;        // [tile, v_padded]
  float* largest;  // [tile]
  float* total;    // [tile]
  float* most;     // [1]: the largest of this thread's logits
};

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

// Of the keys, and of the queries, which may be of the last tokens only.
HeadShape shape_of(const AttentionForward& args) {
  return {static_cast<size_t>(args.k.size(1)), static_cast<size_t>(args.q.size(3)),
          static_cast<size_t>(args.v.size(3))};
}
HeadShape query_shape_of(const AttentionForward& args) {
  HeadShape shape = shape_of(args);
  shape.num_tokens = static_cast<size_t>(args.q.size(1));
  return shape;
}

template <class T>
void pack(const AttentionForward& args, const Share& share, const PackedKeys& packed, const ForwardTile& work) {
  const HeadShape shape = shape_of(args);
  for (size_t index = 0; index < shape.num_tiles(); ++index) {
    if (!share.owns(index)) continue;
    const size_t first = index * tile, count = shape.rows_of_tile(index), qk4 = shape.qk4(), v4 = shape.v4();
    for (size_t r = 0; r < count; ++r) {
      prefetch_later_row<T>(args.k, share.batch, share.head, first + r);
      convert_row(row_of<T>(args.k, share.batch, share.head, first + r), shape.d_qk, qk4, 1.0f, work.rows + r * qk4);
    }
    std::fill(work.rows + count * qk4, work.rows + tile * qk4, 0.0f);
    rows_to_transposed_panels(work.rows, qk4, tile, qk4, packed.k_transposed + first * qk4);
    for (size_t r = 0; r < count; ++r) {
      prefetch_later_row<T>(args.v, share.batch, share.head, first + r);
      convert_row(row_of<T>(args.v, share.batch, share.head, first + r), shape.d_v, v4, 1.0f, work.rows + r * v4);
    }
    rows_to_panels(work.rows, v4, count, shape.d_v, packed.v + first * panel_width,
                   shape.padded_tokens() * panel_width);
  }
}

template <class T>
void forward_tile(const AttentionForward& args, const Share& share, const PackedKeys& packed, const ForwardTile& work,
                  size_t index) {
  const HeadShape shape = shape_of(args), queries = query_shape_of(args);
  const size_t first = index * tile, count = queries.rows_of_tile(index), rows = round_up(count, block_rows);
  const size_t position = shape.num_tokens - queries.num_tokens + first;  // of the first query among the keys
  const size_t last_keys = (position + count - 1) / tile;
  const size_t qk4 = shape.qk4(), v_padded = shape.v_padded();
  for (size_t r = 0; r < count; ++r) {
    prefetch_later_row<T>(args.q, share.batch, share.head, first + r);
    convert_row(row_of<T>(args.q, share.batch, share.head, first + r), shape.d_qk, qk4, static_cast<float>(args.scale),
                work.rows + r * qk4);
  }
  std::fill(work.rows + count * qk4, work.rows + rows * qk4, 0.0f);
  std::fill(work.o, work.o + rows * v_padded, 0.0f);
  std::fill(work.largest, work.largest + tile, -std::numeric_limits<float>::infinity());
  std::fill(work.total, work.total + tile, 0.0f);
  for (size_t keys = first_key_of(args.document_starts, share.batch, first) / tile; keys <= last_keys; ++keys) {
    const Mask mask = keys == last_keys && position % tile == 0 ? Mask::columns_after_row : Mask::none;
    const size_t num_keys = shape.rows_of_tile(keys);
    multiply_masked_output({work.rows, qk4}, packed.k_transposed + keys * tile * qk4, qk4 * panel_width, shape.d_qk,
                           rows, num_keys, mask, work.scores, tile);
    for (size_t r = 0; r < count; ++r) {
      const size_t up_to = position + r + 1;
      const size_t visible = up_to > keys * tile ? std::min(num_keys, up_to - keys * tile) : 0;
      const size_t start = first_key_of(args.document_starts, share.batch, first + r);
      const size_t from = start > keys * tile ? start - keys * tile : 0;
      const float factor = online_softmax(work.scores + r * tile, from, visible, work.largest[r], work.total[r]);
      if (factor != 1.0f && keys > 0) scale_row(work.o + r * v_padded, v_padded, factor);
    }
    multiply_masked_left<Left::plain>({work.scores, tile}, packed.v + keys * tile * panel_width,
                                      shape.padded_tokens() * panel_width, num_keys, rows, shape.d_v, mask, work.o,
                                      v_padded);
  }
  float* lse = args.lse.as<float>() + (share.batch * args.q.size(2) + share.head) * args.q.size(1) + first;
  for (size_t r = 0; r < count; ++r) {
    write_row(work.o + r * v_padded, shape.d_v, 1.0f / work.total[r],
              row_of<T>(args.o, share.batch, share.head, first + r));
    lse[r] = work.largest[r] + std::log(work.total[r]);
    *work.most = std::max(*work.most, work.largest[r]);
  }
}

void forward_pack(const AttentionForward& args, const Share& share, const PackedKeys& packed, const ForwardTile& work) {
  if (args.q.dtype == DType::bf16)
    pack<bf16>(args, share, packed, work);
  else
    pack<float>(args, share, packed, work);
}

void forward_tiles(const AttentionForward& args, const Share& share, const PackedKeys& packed,
                   const ForwardTile& work) {
  *work.most = -std::numeric_limits<float>::infinity();
  for (size_t index = 0; index < query_shape_of(args).num_tiles(); ++index) {
    if (!share.owns(index)) continue;
    if (args.q.dtype == DType::bf16)
      forward_tile<bf16>(args, share, packed, work, index);
    else
      forward_tile<float>(args, share, packed, work, index);
  }
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(forward_pack);
HWY_EXPORT(forward_tiles);

const char* attention_forward_refuses(const AttentionForward& args) {
  return args.q.dtype == DType::f64 ? "vector kernels are for float32 and bf16" : nullptr;
}

void attention_forward(OpContext& ctx, const AttentionForward& args) {
  if (args.max_logit) {
    std::fill_n(args.max_logit.as<float>(), args.max_logit.num_elements(), -std::numeric_limits<float>::infinity());
  }
  if (args.q.num_elements() == 0 && args.o.num_elements() == 0) return;
  const HeadShape shape{static_cast<size_t>(args.k.size(1)), static_cast<size_t>(args.q.size(3)),
                        static_cast<size_t>(args.v.size(3))};
  const int64_t pairs = args.q.size(0) * args.q.size(2);
  const int threads = lamina::cpu::threads_for(pairs * static_cast<int64_t>(shape.num_tiles()), 1);
  std::vector<PackedKeys> packed;
  std::vector<ForwardTile> work;
  for (int thread = 0; thread < threads; ++thread) {
    packed.push_back({take_floats(ctx, shape.padded_tokens() * shape.qk4()),
                      take_floats(ctx, shape.padded_tokens() * shape.v_padded())});
    work.push_back({take_floats(ctx, tile * std::max(shape.qk4(), shape.v4())), take_floats(ctx, tile * tile),
                    take_floats(ctx, tile * shape.v_padded()), take_floats(ctx, tile), take_floats(ctx, tile),
                    take_floats(ctx, 1)});
  }
  const auto keep_largest = [&](int64_t batch, int64_t head, std::span<const ForwardTile> tiles) {
    if (!args.max_logit) return;
    float& largest = args.max_logit.as<float>()[batch * args.q.size(2) + head];
    for (const ForwardTile& own : tiles) largest = std::max(largest, *own.most);
  };
  for_heads(
      args.q.size(0), args.q.size(2), threads,
      [&](int thread, int64_t batch, int64_t head) {
        const auto slot = static_cast<size_t>(thread);
        HWY_DYNAMIC_DISPATCH(forward_pack)(args, {batch, head, 0, 1}, packed[slot], work[slot]);
        HWY_DYNAMIC_DISPATCH(forward_tiles)(args, {batch, head, 0, 1}, packed[slot], work[slot]);
        keep_largest(batch, head, {&work[slot], 1});
      },
      [&](int64_t first, int64_t count) {
        const auto parts = static_cast<size_t>(threads);
        for (int64_t pair = first; pair < first + count; ++pair) {
          const int64_t batch = pair / args.q.size(2), head = pair % args.q.size(2);
          lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
            const auto part = static_cast<size_t>(thread);
            HWY_DYNAMIC_DISPATCH(forward_pack)(args, {batch, head, part, parts}, packed[0], work[part]);
          });
          lamina::cpu::parallel_parts(threads, threads, [&](int thread, int64_t, int64_t) {
            const auto part = static_cast<size_t>(thread);
            HWY_DYNAMIC_DISPATCH(forward_tiles)(args, {batch, head, part, parts}, packed[0], work[part]);
          });
          keep_largest(batch, head, work);
        }
      });
}

}  // namespace lamina::ops::cpu
#endif
