#include "core/ops/kda/implementations.h"

#include <algorithm>
#include <initializer_list>

#include "core/device/cuda_device.h"
#include "core/ops/kda/kernels.h"

namespace lamina::ops::cuda {
namespace {

// Pairs of sequence and head go in groups that need no more scratch than this, where more than one must.
constexpr int64_t scratch_limit = int64_t{2} << 30;

const char* refuses(const TensorView& q, const TensorView& v) {
  if (q.dtype == DType::f64) return "fp64 runs on the CPU";
  const bool wide = q.size(3) > kda_max_width || v.size(3) > kda_max_width;
  return wide ? "heads are wider than 256" : nullptr;
}

KdaRows rows_of(const TensorView& view) {
  return {view.data, view.stride(0), view.stride(1), view.stride(2)};
}

bool rows_aligned(const TensorView& view) {
  const auto width = 16 / size_of(view.dtype);
  for (int axis = 0; axis < 3; ++axis) {
    if (view.stride(axis) % width != 0) return false;
  }
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

int round_up_to_16(int64_t n) {
  return static_cast<int>(std::max<int64_t>(1, (n + 15) / 16) * 16);
}

float* floats_of(const TensorView& view) {
  return view ? view.as<float>() : nullptr;
}

template <class Args>
KdaParams params_of(const Args& args) {
  KdaParams p;
  p.bf16 = args.q.dtype == DType::bf16;
  p.chunks.tokens = args.q.size(1);
  p.q = rows_of(args.q), p.k = rows_of(args.k), p.v = rows_of(args.v);
  p.g = rows_of(args.g), p.beta = rows_of(args.beta);
  p.batch = args.q.size(0), p.heads = args.q.size(2);
  p.d_k = static_cast<int>(args.q.size(3)), p.d_v = static_cast<int>(args.v.size(3));
  p.k_padded = round_up_to_16(p.d_k), p.v_padded = round_up_to_16(p.d_v);
  p.scale = static_cast<float>(args.scale);
  p.initial_state = floats_of(args.initial_state);
  p.rows = p.chunks.tokens + kda_chunk;
  p.slots = p.chunks.tokens / kda_chunk + 2;
  return p;
}

bool is_fast(const KdaParams& p, std::initializer_list<const TensorView*> operands) {
  return p.bf16 && p.d_k == 128 && p.d_v == 128 &&
         std::all_of(operands.begin(), operands.end(), [](const TensorView* view) { return rows_aligned(*view); });
}

// Scratch, elements per pair.
struct Needs {
  int64_t keys, squares, decays, values, states;
  explicit Needs(const KdaParams& p)
      : keys(p.rows * p.k_padded),
        squares(p.rows * kda_chunk),
        decays(p.slots * p.k_padded),
        values(p.rows * p.v_padded),
        states(p.slots * p.k_padded * p.v_padded) {}
  int64_t bytes(const KdaParams& p, bool backward) const {
    const int64_t elements = 3 * keys + 2 * squares + (backward ? (p.fast ? 2 : 3) * values + 2 * states : 0);
    return elements * (p.bf16 ? 2 : 4) + 4 * decays;
  }
};

// Takes the scratch of both directions and calls run(params) for each group of pairs, with the chunks prepared.
template <class Run>
void each_group(OpContext& ctx, KdaParams p, const TensorView& document_starts, bool backward, cudaStream_t stream,
                Run&& run) {
  const int64_t pairs = p.batch * p.heads;
  if (document_starts) {
    p.chunks.starts = document_starts.as<int32_t>();
    p.chunks.table = ctx.scratch.take(DType::i32, {p.batch, p.chunks.tokens + 1}).as<int32_t>();
    p.chunks.counts = ctx.scratch.take(DType::i32, {p.batch}).as<int32_t>();
    launch_kda_chunk_table(p, stream);
  }
  const Needs needs(p);
  const int64_t group = std::clamp<int64_t>(scratch_limit / needs.bytes(p, backward), 1, pairs);
  const auto take = [&](int64_t per_pair) {
    return ctx.scratch.take(p.bf16 ? DType::bf16 : DType::f32, {group, per_pair}).data;
  };
  p.q_decayed = take(needs.keys), p.k_decayed = take(needs.keys), p.k_to_end = take(needs.keys);
  p.m = take(needs.squares), p.aqk = take(needs.squares);
  p.decays = ctx.scratch.take(DType::f32, {group, needs.decays}).as<float>();
  if (backward) {
    p.r = take(needs.values), p.beta_y = take(needs.values);
    if (!p.fast) p.d_o_copy = take(needs.values);
    p.states = take(needs.states), p.d_states = take(needs.states);
  }
  for (p.first_pair = 0; p.first_pair < pairs; p.first_pair += group) {
    p.num_pairs = std::min(group, pairs - p.first_pair);
    launch_kda_prepare(p, stream);
    run(p);
  }
}

// Without a token the state, or its gradient, passes through.
void copy_states(OpContext& ctx, const TensorView& from, const TensorView& to) {
  if (!to) return;
  const int64_t bytes = to.num_elements() * size_of(to.dtype);
  if (from)
    lamina::cuda::copy(to.data, from.data, bytes, ctx.stream);
  else
    lamina::cuda::fill_zero(to.data, bytes, ctx.stream);
}

cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

}  // namespace

const char* kda_forward_refuses(const KdaForward& args) {
  return refuses(args.q, args.v);
}

void kda_forward(OpContext& ctx, const KdaForward& args) {
  KdaParams p = params_of(args);
  if (p.batch * p.heads == 0) return;
  if (p.chunks.tokens == 0) return copy_states(ctx, args.initial_state, args.final_state);
  p.o = rows_of(args.o);
  p.final_state = floats_of(args.final_state);
  p.fast = is_fast(p, {&args.q, &args.k, &args.v, &args.g, &args.o});
  const cudaStream_t stream = stream_of(ctx);
  each_group(ctx, p, args.document_starts, false, stream,
             [&](const KdaParams& group) { launch_kda_scan(group, false, stream); });
}

const char* kda_backward_refuses(const KdaBackward& args) {
  return refuses(args.q, args.v);
}

void kda_backward(OpContext& ctx, const KdaBackward& args) {
  KdaParams p = params_of(args);
  if (p.batch * p.heads == 0) return;
  if (p.chunks.tokens == 0) return copy_states(ctx, args.d_final_state, args.d_initial_state);
  p.d_o = rows_of(args.d_o);
  p.dq = rows_of(args.dq), p.dk = rows_of(args.dk), p.dv = rows_of(args.dv);
  p.dg = rows_of(args.dg), p.dbeta = rows_of(args.dbeta);
  p.d_final_state = floats_of(args.d_final_state);
  p.d_initial_state = floats_of(args.d_initial_state);
  p.fast = is_fast(p, {&args.q, &args.k, &args.v, &args.g, &args.d_o, &args.dq, &args.dk, &args.dv, &args.dg});
  const cudaStream_t stream = stream_of(ctx);
  each_group(ctx, p, args.document_starts, true, stream, [&](const KdaParams& group) {
    launch_kda_scan(group, true, stream);
    launch_kda_scan_back(group, stream);
    launch_kda_gradients(group, stream);
  });
}

}  // namespace lamina::ops::cuda
