// W_k moves to the query, once per head; then a sequence's latents are read once for all heads, as keys and as values; W_v comes last.
// A long context is cut into parts, by its length alone, and what the threads found in them is joined in their order.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/attention/cpu_tiles.h"
#include "core/ops/decode/implementations.h"
#include "core/ops/simd/parameters.h"

#define HWY_TARGET_INCLUDE "core/ops/decode/cpu_latent_attention.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/attention/online_softmax-inl.h"
#include "core/ops/simd/simd_rows-inl.h"
#include "core/ops/simd/tile_gemm-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_LATENT_ATTENTION
#define LAMINA_CORE_OPS_CPU_LATENT_ATTENTION
namespace lamina::ops::cpu {
namespace {

constexpr size_t most_block_rows = 8;  // of any instruction set: heads are padded to it

struct LatentDims {
  size_t heads, rank, d_nope, d_shared, d_v;
  explicit LatentDims(const LatentAttention& args)
      : heads(static_cast<size_t>(args.q.size(1))),
        rank(static_cast<size_t>(args.kv_b.size(1))),
        d_nope(static_cast<size_t>(args.kv_b.size(0) / args.q.size(1) - args.o.size(2))),
        d_shared(static_cast<size_t>(args.q.size(2)) - d_nope),
        d_v(static_cast<size_t>(args.o.size(2))) {}
  size_t width() const { return rank + d_shared; }
  size_t width4() const { return round_up(width(), 4); }
  size_t padded_rank() const { return round_up(rank, widest_panel); }
  size_t padded_heads() const { return round_up(heads, most_block_rows); }
};

// A stretch of one sequence's context, and what its softmax came to.
struct LatentPart {
  int64_t sequence, begin, end;
  float* o;                // [padded_heads, padded_rank]: sums of latents, relative to `largest`
  float *largest, *total;  // [padded_heads]
};

// One thread's tile of the context.
struct LatentTile {
  float* rows;    // [tile, width4]
  float* keys;    // transposed panels of it
  float* values;  // panels of its first `rank` columns
  float* scores;  // [padded_heads, tile]
};

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

// One head's query against latents: [scale W_k^T q_nope | scale q_shared].
template <class T>
void absorb_head(const LatentAttention& args, const LatentDims& dims, size_t head, float* absorbed) {
  const T* weight = static_cast<const T*>(args.kv_b.data) + head * (dims.d_nope + dims.d_v) * dims.rank;
  const V scale = hn::Set(D(), static_cast<float>(args.scale));
  for (int64_t s = 0; s < args.q.size(0); ++s) {
    const T* q =
        static_cast<const T*>(args.q.data) + s * args.q.stride(0) + static_cast<int64_t>(head) * args.q.stride(1);
    float* out = absorbed + (static_cast<size_t>(s) * dims.padded_heads() + head) * dims.width4();
    each_vector(dims.rank, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      V sum[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
      size_t n = 0;
      for (; n + 4 <= dims.d_nope; n += 4) {
        for (size_t k = 0; k < 4; ++k)
          sum[k] = hn::MulAdd(hn::Set(D(), static_cast<float>(q[n + k])), load(part, weight + (n + k) * dims.rank + i),
                              sum[k]);
      }
      for (; n < dims.d_nope; ++n)
        sum[0] = hn::MulAdd(hn::Set(D(), static_cast<float>(q[n])), load(part, weight + n * dims.rank + i), sum[0]);
      store(part, hn::Mul(scale, hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]))), out + i);
    });
    convert_row(q + dims.d_nope, dims.d_shared, dims.width4() - dims.rank, static_cast<float>(args.scale),
                out + dims.rank);
  }
}

template <class T>
void attend_part(const LatentAttention& args, const LatentDims& dims, const LatentPart& part, const float* absorbed,
                 const LatentTile& work) {
  const T* latents = args.latents[static_cast<size_t>(part.sequence)].template as<T>();
  const float* queries = absorbed + static_cast<size_t>(part.sequence) * dims.padded_heads() * dims.width4();
  const size_t rows = round_up(dims.heads, block_rows), width4 = dims.width4(), padded_rank = dims.padded_rank();
  std::fill_n(part.o, rows * padded_rank, 0.0f);
  std::fill_n(part.largest, rows, -std::numeric_limits<float>::infinity());
  std::fill_n(part.total, rows, 0.0f);
  for (int64_t first = part.begin; first < part.end; first += static_cast<int64_t>(tile)) {
    const size_t count = static_cast<size_t>(std::min<int64_t>(tile, part.end - first));
    const size_t padded_count = round_up(count, panel_width);
    for (size_t r = 0; r < count; ++r) {
      const T* latent = latents + (static_cast<size_t>(first) + r) * dims.width();
      convert_row(latent, dims.width(), width4, 1.0f, work.rows + r * width4);
    }
    std::fill(work.rows + count * width4, work.rows + padded_count * width4, 0.0f);
    rows_to_transposed_panels(work.rows, width4, padded_count, width4, work.keys);
    rows_to_panels(work.rows, width4, count, dims.rank, work.values, tile * panel_width);
    multiply_masked_output({queries, width4}, work.keys, width4 * panel_width, dims.width(), rows, count, Mask::none,
                           work.scores, tile);
    for (size_t h = 0; h < dims.heads; ++h) {
      const float factor = online_softmax(work.scores + h * tile, 0, count, part.largest[h], part.total[h]);
      if (factor != 1.0f && first > part.begin) scale_row(part.o + h * padded_rank, padded_rank, factor);
    }
    multiply_masked_left<Left::plain>({work.scores, tile}, work.values, tile * panel_width, count, rows, dims.rank,
                                      Mask::none, part.o, padded_rank);
  }
}

// The parts of one sequence joined in parts.front(), for one head; then W_v.
template <class T>
void finish_head(const LatentAttention& args, const LatentDims& dims, std::span<const LatentPart> parts, size_t head) {
  const size_t padded_rank = dims.padded_rank();
  float* sum = parts.front().o + head * padded_rank;
  float largest = parts.front().largest[head], total = parts.front().total[head];
  for (const LatentPart& part : parts.subspan(1)) {
    const float most = std::max(largest, part.largest[head]);
    const float before = std::exp(largest - most), more = std::exp(part.largest[head] - most);
    const float* from = part.o + head * padded_rank;
    each_vector(dims.rank, [&](size_t i, auto at) LAMINA_VECTOR_BODY {
      store(at, hn::MulAdd(hn::Set(D(), more), load(at, from + i), hn::Mul(hn::Set(D(), before), load(at, sum + i))),
            sum + i);
    });
    total = before * total + more * part.total[head];
    largest = most;
  }
  const int64_t sequence = parts.front().sequence;
  const T* weight = static_cast<const T*>(args.kv_b.data) + (head * (dims.d_nope + dims.d_v) + dims.d_nope) * dims.rank;
  T* o = static_cast<T*>(args.o.data) + sequence * args.o.stride(0) + static_cast<int64_t>(head) * args.o.stride(1);
  for (size_t d = 0; d < dims.d_v; ++d) {
    V dot[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
    each_vector_by_4(dims.rank, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
      dot[k] = hn::MulAdd(load(part, weight + d * dims.rank + i), load(part, sum + i), dot[k]);
    });
    o[d] = static_cast<T>(sum_of_lanes(dot) / total);
  }
}

void absorb(const LatentAttention& args, const LatentDims& dims, size_t head, float* absorbed) {
  if (args.q.dtype == DType::bf16) return absorb_head<bf16>(args, dims, head, absorbed);
  absorb_head<float>(args, dims, head, absorbed);
}
void attend(const LatentAttention& args, const LatentDims& dims, const LatentPart& part, const float* absorbed,
            const LatentTile& work) {
  if (args.q.dtype == DType::bf16) return attend_part<bf16>(args, dims, part, absorbed, work);
  attend_part<float>(args, dims, part, absorbed, work);
}
void finish(const LatentAttention& args, const LatentDims& dims, std::span<const LatentPart> parts, size_t head) {
  if (args.q.dtype == DType::bf16) return finish_head<bf16>(args, dims, parts, head);
  finish_head<float>(args, dims, parts, head);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(absorb);
HWY_EXPORT(attend);
HWY_EXPORT(finish);

namespace {

// So many tokens that a part is worth a thread, and so few parts that their sums take little room.
int64_t tokens_per_part(int64_t tokens) {
  constexpr int64_t fewest = 256, most_parts = 64;
  const int64_t share = (tokens + most_parts - 1) / most_parts;
  return std::max<int64_t>(
      fewest, (share + static_cast<int64_t>(tile) - 1) / static_cast<int64_t>(tile) * static_cast<int64_t>(tile));
}

}  // namespace

const char* latent_attention_refuses(const LatentAttention& args) {
  return refuses_f64(args.q);
}

void latent_attention(OpContext& ctx, const LatentAttention& args) {
  const LatentDims dims(args);
  const auto sequences = static_cast<int64_t>(args.latents.size()), heads = static_cast<int64_t>(dims.heads);
  std::vector<LatentPart> parts;
  std::vector<size_t> first_part;
  for (int64_t s = 0; s < sequences; ++s) {
    first_part.push_back(parts.size());
    const int64_t tokens = args.latents[static_cast<size_t>(s)].size(0), step = tokens_per_part(tokens);
    for (int64_t begin = 0; begin < tokens; begin += step) {
      parts.push_back({s, begin, std::min(begin + step, tokens),
                       take_floats(ctx, dims.padded_heads() * dims.padded_rank()),
                       take_floats(ctx, dims.padded_heads()), take_floats(ctx, dims.padded_heads())});
    }
  }
  first_part.push_back(parts.size());
  const size_t num_queries = static_cast<size_t>(sequences) * dims.padded_heads() * dims.width4();
  float* absorbed = take_floats(ctx, num_queries);
  std::fill_n(absorbed, num_queries, 0.0f);
  const int64_t grain = 1 + elements_per_thread / static_cast<int64_t>(dims.rank * std::max(dims.d_nope, dims.d_v) + 1);
  lamina::cpu::parallel_for(heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) HWY_DYNAMIC_DISPATCH(absorb)(args, dims, static_cast<size_t>(h), absorbed);
  });
  const auto num_parts = static_cast<int64_t>(parts.size());
  const int threads = lamina::cpu::threads_for(num_parts, 1);
  std::vector<LatentTile> work;
  for (int thread = 0; thread < threads; ++thread) {
    work.push_back({take_floats(ctx, tile * dims.width4()), take_floats(ctx, tile * dims.width4()),
                    take_floats(ctx, tile * dims.padded_rank()), take_floats(ctx, tile * dims.padded_heads())});
  }
  lamina::cpu::parallel_parts(num_parts, threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) HWY_DYNAMIC_DISPATCH(attend)
    (args, dims, parts[static_cast<size_t>(n)], absorbed, work[static_cast<size_t>(thread)]);
  });
  lamina::cpu::parallel_for(sequences * heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const auto s = static_cast<size_t>(n / heads);
      HWY_DYNAMIC_DISPATCH(finish)
      (args, dims, {parts.data() + first_part[s], first_part[s + 1] - first_part[s]}, static_cast<size_t>(n % heads));
    }
  });
}

}  // namespace lamina::ops::cpu
#endif
