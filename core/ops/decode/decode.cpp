#include "core/ops/decode/decode.h"

#include "core/ops/decode/implementations.h"
#include "core/ops/gpu/register.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_one_each(std::span<const TensorView> memory, const TensorView& rows) {
  LAMINA_CHECK(static_cast<int64_t>(memory.size()) == rows.size(0), "memory of {} sequences beside rows {}",
               memory.size(), rows.to_string());
}

constexpr Implementation<ShortConvStep> short_conv_step_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(short_conv_step)  //
    {"cpu", cpu::short_conv_step_refuses, cpu::short_conv_step},
    {"ref", nullptr, ref::short_conv_step}};
constexpr Implementation<KdaStep> kda_step_implementations[] = {LAMINA_CUDA_IMPLEMENTATION(kda_step)  //
                                                                {"cpu", cpu::kda_step_refuses, cpu::kda_step},
                                                                {"ref", nullptr, ref::kda_step}};
constexpr Implementation<LatentAttention> latent_attention_implementations[] = {
    LAMINA_CUDA_IMPLEMENTATION(latent_attention)  //
    {"cpu", cpu::latent_attention_refuses, cpu::latent_attention},
    {"ref", nullptr, ref::latent_attention}};
constexpr Implementation<CopyRows> copy_rows_implementations[] = {LAMINA_CUDA_IMPLEMENTATION(copy_rows)  //
                                                                  {"ref", nullptr, ref::copy_rows}};

}  // namespace

void short_conv_step(OpContext& ctx, const ShortConvStep& args) {
  LAMINA_CHECK(args.x.rank() == 2 && args.weight.rank() == 2, "x {}, weight {}", args.x.to_string(),
               args.weight.to_string());
  const int64_t channels = args.x.size(1), taps = args.weight.size(1);
  expect_compute_dtype(args.x, "x");
  expect_shape(args.x, "x", args.x.shape);
  expect(args.weight, "weight", accumulation_dtype(args.x.dtype), {channels, taps});
  expect_contiguous(args.weight, "weight");
  LAMINA_CHECK(taps >= 1, "weight {} has no taps", args.weight.to_string());
  expect_one_each(args.tails, args.x);
  for (const TensorView& tail : args.tails) expect(tail, "tail", args.x.dtype, {taps - 1, channels});
  expect(args.y, "y", args.x.dtype, args.x.shape);
  dispatch<ShortConvStep>(ctx, "short_conv_step", short_conv_step_implementations, args);
}

void kda_step(OpContext& ctx, const KdaStep& args) {
  LAMINA_CHECK(args.q.rank() == 3 && args.v.rank() == 3, "q {}, v {}", args.q.to_string(), args.v.to_string());
  const int64_t sequences = args.q.size(0), heads = args.q.size(1), d_k = args.q.size(2), d_v = args.v.size(2);
  const DType dtype = args.q.dtype, acc = accumulation_dtype(dtype);
  expect_compute_dtype(args.q, "q");
  expect_shape(args.q, "q", {sequences, heads, d_k});
  expect(args.k, "k", dtype, {sequences, heads, d_k});
  expect(args.v, "v", dtype, {sequences, heads, d_v});
  expect(args.g, "g", acc, {sequences, heads, d_k});
  expect(args.beta, "beta", acc, {sequences, heads});
  expect_one_each(args.states, args.q);
  for (const TensorView& state : args.states) {
    expect(state, "state", acc, {heads, d_k, d_v});
    expect_contiguous(state, "state");
  }
  expect(args.o, "o", dtype, {sequences, heads, d_v});
  dispatch<KdaStep>(ctx, "kda_step", kda_step_implementations, args);
}

void latent_attention(OpContext& ctx, const LatentAttention& args) {
  LAMINA_CHECK(args.q.rank() == 3 && args.o.rank() == 3 && args.kv_b.rank() == 2, "q {}, kv_b {}, o {}",
               args.q.to_string(), args.kv_b.to_string(), args.o.to_string());
  const int64_t sequences = args.q.size(0), heads = args.q.size(1), d_v = args.o.size(2), rank = args.kv_b.size(1);
  const int64_t d_nope = args.kv_b.size(0) / heads - d_v, d_shared = args.q.size(2) - d_nope;
  LAMINA_CHECK(args.kv_b.size(0) % heads == 0 && d_nope >= 0 && d_shared >= 0, "kv_b {} beside q {}, o {}",
               args.kv_b.to_string(), args.q.to_string(), args.o.to_string());
  const DType dtype = args.q.dtype;
  expect_compute_dtype(args.q, "q");
  expect_shape(args.q, "q", args.q.shape);
  expect(args.kv_b, "kv_b", dtype, {heads * (d_nope + d_v), rank});
  expect_contiguous(args.kv_b, "kv_b");
  expect_one_each(args.latents, args.q);
  for (const TensorView& latents : args.latents) {
    LAMINA_CHECK(latents.rank() == 2 && latents.size(0) >= 1, "latents {}", latents.to_string());
    expect(latents, "latents", dtype, {latents.size(0), rank + d_shared});
    expect_contiguous(latents, "latents");
  }
  expect(args.o, "o", dtype, {sequences, heads, d_v});
  dispatch<LatentAttention>(ctx, "latent_attention", latent_attention_implementations, args);
}

void copy_rows(OpContext& ctx, const CopyRows& args) {
  LAMINA_CHECK(args.from.size() == args.to.size(), "{} matrices to {} places", args.from.size(), args.to.size());
  for (size_t i = 0; i < args.from.size(); ++i) {
    LAMINA_CHECK(args.from[i].rank() == 2, "from {}", args.from[i].to_string());
    expect_compute_dtype(args.from[i], "from");
    expect(args.from[i], "from", args.from.front().dtype, args.from[i].shape);
    expect(args.to[i], "to", args.from.front().dtype, args.from[i].shape);
  }
  dispatch<CopyRows>(ctx, "copy_rows", copy_rows_implementations, args);
}

}  // namespace lamina::ops
