// From views to the parameters of the short convolution's kernels.
#include "core/ops/short_conv/implementations.h"

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/ops/short_conv/kernels.h"

namespace lamina::ops::cuda {
namespace {

const char* refuses(const TensorView& x, const TensorView& weight) {
  if (x.dtype == DType::f64) return "fp64 runs on the CPU";
  if (weight.size(1) > short_conv_max_taps) return "a convolution of more than 8 taps";
  if (x.size(0) > 65535) return "more than 65535 sequences";
  return nullptr;
}

Sequences sequences_of(const TensorView& v) {
  return {v.data, v.stride(0), v.stride(1)};
}

// Whether four channels can be moved at a time.
bool fits_vectors(const TensorView& v) {
  const int64_t bytes = 4 * size_of(v.dtype);
  return v.size(2) % 4 == 0 && reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(bytes) == 0 &&
         (v.size(0) <= 1 || v.stride(0) % 4 == 0) && (v.size(1) <= 1 || v.stride(1) % 4 == 0);
}

ShortConvParams params_of(const TensorView& x, const TensorView& weight, const TensorView& document_starts) {
  ShortConvParams p{};
  p.x = sequences_of(x);
  p.weight = static_cast<const float*>(weight.data);
  p.document_starts = static_cast<const int32_t*>(document_starts.data);
  p.batch = x.size(0), p.num_tokens = x.size(1), p.channels = x.size(2);
  p.chunk = short_conv_chunk(p.batch, p.num_tokens, p.channels);
  p.num_chunks = (p.num_tokens + p.chunk - 1) / p.chunk;
  p.taps = static_cast<int>(weight.size(1));
  p.is_bf16 = x.dtype == DType::bf16;
  return p;
}

cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

}  // namespace

const char* short_conv_forward_refuses(const ShortConvForward& args) {
  return refuses(args.x, args.weight);
}

void short_conv_forward(OpContext& ctx, const ShortConvForward& args) {
  if (args.x.num_elements() == 0) return;
  ShortConvParams p = params_of(args.x, args.weight, args.document_starts);
  p.y = sequences_of(args.y);
  p.is_vector = fits_vectors(args.x) && fits_vectors(args.y);
  launch_short_conv_forward(p, stream_of(ctx));
}

const char* short_conv_backward_refuses(const ShortConvBackward& args) {
  return refuses(args.x, args.weight);
}

void short_conv_backward(OpContext& ctx, const ShortConvBackward& args) {
  if (args.x.num_elements() == 0) return;
  ShortConvParams p = params_of(args.x, args.weight, args.document_starts);
  p.dy = sequences_of(args.dy), p.dx = sequences_of(args.dx);
  p.dweight = static_cast<float*>(args.dweight.data);
  p.partials = static_cast<float*>(ctx.scratch.take(DType::f32, {p.batch * p.num_chunks, p.channels, p.taps}).data);
  p.is_vector = fits_vectors(args.x) && fits_vectors(args.dy) && fits_vectors(args.dx);
  launch_short_conv_backward(p, stream_of(ctx));
}

}  // namespace lamina::ops::cuda
