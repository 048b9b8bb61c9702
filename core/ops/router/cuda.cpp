#include "core/ops/router/implementations.h"

#include "core/device/cuda_device.h"
#include "core/ops/router/kernels.h"

namespace lamina::ops::cuda {
namespace {

constexpr int64_t max_experts = 1 << 24;  // so that counts and indices are exact in fp32 and int32

const char* refuses_scores(const TensorView& scores) {
  if (scores.dtype == DType::f64) return "fp64 runs on the CPU";
  if (scores.size(1) > max_experts) return "more than 2^24 experts";
  return nullptr;
}

cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

}  // namespace

const char* router_forward_refuses(const RouterForward& args) {
  return refuses_scores(args.scores);
}

void router_forward(OpContext& ctx, const RouterForward& args) {
  const int64_t tokens = args.scores.size(0), experts = args.scores.size(1);
  if (tokens == 0) return;
  RouterForwardParams p{};
  p.num_tokens = tokens;
  p.num_experts = static_cast<int>(experts);
  p.k = static_cast<int>(args.chosen.size(1));
  p.scaling = static_cast<float>(args.scaling);
  p.renormalize = args.renormalize;
  p.logits = args.logits.as<float>();
  p.bias = args.bias.as<float>();
  p.scores = args.scores.as<float>();
  p.chosen = args.chosen.as<int32_t>();
  p.weights = args.weights.as<float>();
  if (!router_keys_fit(p.num_experts)) {
    p.keys = reinterpret_cast<uint32_t*>(ctx.scratch.take(DType::i32, {tokens, experts}).as<int32_t>());
  }
  if (!args.fractions) {
    launch_router_forward(p, stream_of(ctx));
    return;
  }
  RouterBalanceParams b{};
  b.num_sequences = args.fractions.size(0);
  b.tokens_per_sequence = p.tokens_per_sequence = tokens / b.num_sequences;
  p.totals = ctx.scratch.take(DType::f32, {tokens}).as<float>();
  const TensorView counts = ctx.scratch.take(DType::i32, {b.num_sequences, experts});
  p.counts = counts.as<int32_t>();
  lamina::cuda::fill_zero(counts.data, counts.num_bytes(), ctx.stream);
  launch_router_forward(p, stream_of(ctx));

  b.num_experts = p.num_experts;
  b.k = p.k;
  b.scores = p.scores;
  b.totals = p.totals;
  b.counts = p.counts;
  const int64_t chunks = router_balance_chunks(b.tokens_per_sequence);
  b.partial = ctx.scratch.take(DType::f32, {b.num_sequences, chunks, experts}).as<float>();
  b.fractions = args.fractions.as<float>();
  b.balance = args.balance.as<float>();
  launch_router_balance(b, stream_of(ctx));
}

const char* router_backward_refuses(const RouterBackward& args) {
  return refuses_scores(args.scores);
}

void router_backward(OpContext& ctx, const RouterBackward& args) {
  const int64_t tokens = args.scores.size(0);
  if (tokens == 0) return;
  RouterBackwardParams p{};
  p.num_tokens = p.tokens_per_sequence = tokens;
  p.num_experts = static_cast<int>(args.scores.size(1));
  p.k = static_cast<int>(args.chosen.size(1));
  p.scaling = static_cast<float>(args.scaling);
  p.balance_scale = static_cast<float>(args.balance_scale);
  p.renormalize = args.renormalize;
  p.low_precision = args.d_logits.dtype == DType::bf16;
  p.scores = args.scores.as<float>();
  p.chosen = args.chosen.as<int32_t>();
  p.d_weights = args.d_weights.as<float>();
  p.d_logits = args.d_logits.data;
  if (args.fractions) {
    p.fractions = args.fractions.as<float>();
    p.tokens_per_sequence = tokens / args.fractions.size(0);
  }
  launch_router_backward(p, stream_of(ctx));
}

const char* router_observe_refuses(const RouterObserve& args) {
  return refuses_scores(args.scores);
}

void router_observe(OpContext& ctx, const RouterObserve& args) {
  const int64_t tokens = args.scores.size(0), experts = args.scores.size(1);
  if (tokens == 0) return;
  RouterObserveParams p{};
  p.num_tokens = tokens;
  p.num_experts = static_cast<int>(experts);
  p.k = static_cast<int>(args.chosen.size(1));
  p.chosen = args.chosen.as<int32_t>();
  p.scores = args.scores.as<float>();
  p.counts = args.counts.as<int32_t>();
  if (args.entropy) {
    p.entropy = args.entropy.as<double>();
    p.partial_entropy = ctx.scratch.take(DType::f64, {router_observe_blocks(tokens)}).as<double>();
  }
  launch_router_observe(p, stream_of(ctx));
}

}  // namespace lamina::ops::cuda
