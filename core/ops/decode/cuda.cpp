#include "core/ops/decode/implementations.h"

#include <algorithm>
#include <limits>

#include "core/device/cuda_device.h"
#include "core/ops/decode/kernels.h"
#include "core/ops/gpu/operands.h"
#include "core/ops/matmul/blas.h"
#include "core/ops/short_conv/kernels.h"

namespace lamina::ops::cuda {
namespace {

constexpr int64_t most_blocks = 65535;  // of a grid's second and third extent

StepRows rows_of(const TensorView& view) {
  return {view.data, view.stride(0), view.rank() > 1 ? view.stride(1) : 0};
}

// run(begin, end) for the sequences of one launch after another.
template <class Run>
void each_group(int64_t sequences, const Run& run) {
  for (int64_t begin = 0; begin < sequences; begin += step_group)
    run(begin, std::min<int64_t>(begin + step_group, sequences));
}

bool is_multiple(const void* data, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
}

}  // namespace

const char* short_conv_step_refuses(const ShortConvStep& args) {
  if (args.weight.size(1) > short_conv_max_taps) return "a convolution of more than 8 taps";
  return refuses_fp64({&args.x});
}

void short_conv_step(OpContext& ctx, const ShortConvStep& args) {
  if (args.x.num_elements() == 0) return;
  const int64_t channels = args.x.size(1), pack = 4 * size_of(args.x.dtype);
  const auto fits_packs = [&](const TensorView& v) {
    return is_multiple(v.data, pack) && (v.size(0) <= 1 || v.stride(0) % 4 == 0);
  };
  each_group(args.x.size(0), [&](int64_t begin, int64_t end) {
    ShortConvStepParams p{};
    const TensorView x = args.x.slice(0, begin, end), y = args.y.slice(0, begin, end);
    p.x = {x.data, x.stride(0), 0}, p.y = {y.data, y.stride(0), 0};
    p.weight = args.weight.as<float>();
    p.sequences = static_cast<int>(end - begin), p.channels = channels;
    p.taps = static_cast<int>(args.weight.size(1));
    p.is_bf16 = x.dtype == DType::bf16;
    p.is_vector = channels % 4 == 0 && fits_packs(x) && fits_packs(y);
    for (int64_t s = begin; s < end; ++s) {
      const TensorView& tail = args.tails[static_cast<size_t>(s)];
      p.tails[s - begin] = {tail.data, 0, tail.stride(0)};
      p.is_vector = p.is_vector && fits_packs(tail);
    }
    launch_short_conv_step(p, stream_of(ctx));
  });
}

const char* kda_step_refuses(const KdaStep& args) {
  if (args.q.size(1) > most_blocks) return "more than 65,535 heads";
  return refuses_fp64({&args.q});
}

void kda_step(OpContext& ctx, const KdaStep& args) {
  if (args.q.size(1) == 0 || args.v.size(2) == 0) return;
  each_group(args.q.size(0), [&](int64_t begin, int64_t end) {
    const auto part = [&](const TensorView& view) { return rows_of(view.slice(0, begin, end)); };
    KdaStepParams p{};
    p.q = part(args.q), p.k = part(args.k), p.v = part(args.v), p.o = part(args.o);
    p.g = part(args.g), p.beta = part(args.beta);
    for (int64_t s = begin; s < end; ++s) p.states[s - begin] = args.states[static_cast<size_t>(s)].as<float>();
    p.sequences = static_cast<int>(end - begin), p.heads = static_cast<int>(args.q.size(1));
    p.d_k = static_cast<int>(args.q.size(2)), p.d_v = static_cast<int>(args.v.size(2));
    p.scale = static_cast<float>(args.scale);
    p.is_bf16 = args.q.dtype == DType::bf16;
    launch_kda_step(p, stream_of(ctx));
  });
}

namespace {

// The products of every head at once: its rows of kv_b against the queries, or against the sums. cuBLAS reads them once for all
// sequences.
struct HeadProducts {
  const LatentAttention& args;
  int64_t sequences = args.q.size(0), heads = args.q.size(1), d_v = args.o.size(2), rank = args.kv_b.size(1);
  int64_t d_nope = args.kv_b.size(0) / heads - d_v, d_shared = args.q.size(2) - d_nope;

  TensorView queries() const { return args.q.select(1, 0).slice(1, 0, d_nope); }  // of head 0
  TensorView key_weights() const { return args.kv_b.slice(0, 0, d_nope); }        // the same
  TensorView value_weights() const { return args.kv_b.slice(0, d_nope, d_nope + d_v).transposed(); }
  TensorView outputs() const { return args.o.select(1, 0); }
  TensorView shared_queries() const { return args.q.slice(2, d_nope, d_nope + d_shared); }  // of all heads
  int64_t weight_step() const { return (d_nope + d_v) * rank; }

  // [sequences, heads, rank]: W_k^T q
  void absorb(OpContext& ctx, const TensorView& absorbed) const {
    if (d_nope == 0) return lamina::cuda::fill_zero(absorbed.data, absorbed.num_bytes(), ctx.stream);
    multiply(ctx.stream, {queries(), key_weights(), absorbed.select(1, 0), 1.0f, 0.0f, heads, args.q.stride(1),
                          weight_step(), rank});
  }
  // W_v mean, of [sequences, heads, rank]
  void project(OpContext& ctx, const TensorView& mean) const {
    multiply(ctx.stream,
             {mean.select(1, 0), value_weights(), outputs(), 1.0f, 0.0f, heads, rank, weight_step(), args.o.stride(1)});
  }
};

// Tokens of a part of a context, by its length alone: enough that what a part leaves behind is little beside its latents, and so few
// parts that a long context's sums take bounded memory.
int64_t latent_tokens_per_part(int64_t tokens) {
  constexpr int64_t fewest = 128, most_parts = 64, step = 16;
  return std::max(fewest, ((tokens + most_parts - 1) / most_parts + step - 1) / step * step);
}

// Whether the tensor cores' kernel can serve the call.
bool on_tensor_cores(const LatentAttention& args, const HeadProducts& h) {
  const auto in_packs = [](const TensorView& v, int axes) {
    bool fits = is_multiple(v.data, 16);
    for (int axis = 0; axis < axes; ++axis) fits = fits && (v.size(axis) <= 1 || v.stride(axis) % 8 == 0);
    return fits;
  };
  const int64_t width = h.rank + h.d_shared;
  return args.q.dtype == DType::bf16 && width <= latent_widest_tensor && h.rank <= latent_highest_tensor &&
         h.rank % 8 == 0 && h.d_shared % 8 == 0 && in_packs(h.shared_queries(), 2) &&
         std::all_of(args.latents.begin(), args.latents.end(), [&](const TensorView& latents) {
           return is_multiple(latents.data, 16) && latents.size(0) <= std::numeric_limits<int>::max() - 1024;
         });
}

// The part of the work between the two products, for sequences [begin, end).
void attend(OpContext& ctx, const HeadProducts& h, const TensorView& absorbed, const TensorView& mean, int64_t begin,
            int64_t end) {
  const ArenaScope scope(ctx.scratch);
  LatentParams p{};
  p.sequences = static_cast<int>(end - begin), p.heads = static_cast<int>(h.heads);
  p.rank = static_cast<int>(h.rank), p.d_shared = static_cast<int>(h.d_shared);
  p.scale = static_cast<float>(h.args.scale);
  p.is_bf16 = h.args.q.dtype == DType::bf16;
  p.in_pairs = (h.rank + h.d_shared) % 2 == 0;
  for (int64_t s = begin; s < end; ++s) {
    const TensorView& latents = h.args.latents[static_cast<size_t>(s)];
    const int64_t i = s - begin;
    const int64_t tokens = latents.size(0), step = latent_tokens_per_part(tokens);
    p.latents[i] = latents.data, p.tokens[i] = tokens, p.tokens_per_part[i] = step;
    p.first_part[i + 1] = p.first_part[i] + static_cast<int>((tokens + step - 1) / step);
    p.in_pairs = p.in_pairs && is_multiple(latents.data, 2 * size_of(latents.dtype));
  }
  p.absorbed = absorbed.slice(0, begin, end).data;
  p.on_tensor_cores = absorbed.dtype == DType::bf16;
  p.q_shared = rows_of(h.shared_queries().slice(0, begin, end));
  p.mean = mean.slice(0, begin, end).data;
  const int64_t parts = p.first_part[p.sequences];
  p.sums = ctx.scratch.take(DType::f32, {parts, h.heads, h.rank}).as<float>();
  p.largest = ctx.scratch.take(DType::f32, {parts, h.heads}).as<float>();
  p.weights = ctx.scratch.take(DType::f32, {parts, h.heads}).as<float>();
  launch_latent_attention(p, stream_of(ctx));
}

}  // namespace

const char* latent_attention_refuses(const LatentAttention& args) {
  const HeadProducts h{args};
  const int64_t width = h.rank + h.d_shared;
  if (width > latent_widest) return "latents of more than 2,304 elements";
  if (width > latent_widest_odd && width % 2 != 0) return "latents of an odd number of elements above 1,152";
  if (h.heads > most_blocks) return "more than 65,535 heads";
  return refuses_fp64({&args.q});
}

void latent_attention(OpContext& ctx, const LatentAttention& args) {
  if (args.o.num_elements() == 0) return;
  const HeadProducts h{args};
  const DType operand = on_tensor_cores(args, h) ? DType::bf16 : DType::f32;
  const TensorView absorbed = ctx.scratch.take(operand, {h.sequences, h.heads, h.rank});
  const TensorView mean = ctx.scratch.take(args.q.dtype, {h.sequences, h.heads, h.rank});
  h.absorb(ctx, absorbed);
  each_group(h.sequences, [&](int64_t begin, int64_t end) { attend(ctx, h, absorbed, mean, begin, end); });
  h.project(ctx, mean);
}

const char* copy_rows_refuses(const CopyRows& args) {
  return args.from.empty() ? nullptr : refuses_fp64({&args.from.front()});
}

void copy_rows(OpContext& ctx, const CopyRows& args) {
  each_group(static_cast<int64_t>(args.from.size()), [&](int64_t begin, int64_t end) {
    CopyRowsParams p{};
    const int64_t element = size_of(args.from.front().dtype);
    p.unit_bytes = 16;
    const auto see = [&](const TensorView& v) {
      const bool fits = is_multiple(v.data, 16) && v.size(1) * element % 16 == 0 &&
                        (v.size(0) <= 1 || v.stride(0) * element % 16 == 0);
      if (!fits) p.unit_bytes = static_cast<int>(element);
    };
    for (int64_t i = begin; i < end; ++i) {
      const TensorView &from = args.from[static_cast<size_t>(i)], &to = args.to[static_cast<size_t>(i)];
      if (from.num_elements() == 0) continue;
      see(from), see(to);
      p.pairs[p.num_pairs++] = {from.data, to.data, from.stride(0), to.stride(0), from.size(0), from.size(1)};
    }
    if (p.num_pairs == 0) return;
    const int64_t elements = p.unit_bytes / element;
    for (CopiedRows& pair : p.pairs) pair.from_step /= elements, pair.to_step /= elements, pair.columns /= elements;
    launch_copy_rows(p, stream_of(ctx));
  });
}

}  // namespace lamina::ops::cuda
