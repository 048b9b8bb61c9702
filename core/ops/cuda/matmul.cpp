#include "core/ops/cuda/matmul.h"

#include "core/device/cuda/check.h"
#include "core/ops/cuda/blas.h"

namespace lamina::ops::cuda {

const char* matmul_refuses(const Matmul& args) {
  return product_refuses(args.a, args.b, args.c);
}

void matmul(OpContext& ctx, const Matmul& args) {
  const TensorView& c = args.c;
  if (c.num_elements() == 0) return;
  const bool accumulate = args.mode == GradMode::accumulate;
  if (args.a.size(1) > 0) {
    multiply(ctx.stream, {args.a, args.b, c, 1.0f, accumulate ? 1.0f : 0.0f});
  } else if (!accumulate) {  // an empty sum
    const auto width = static_cast<size_t>(c.size(1) * size_of(c.dtype));
    const size_t pitch = c.size(0) > 1 ? static_cast<size_t>(c.stride(0) * size_of(c.dtype)) : width;
    lamina::cuda::check(cudaMemset2DAsync(c.data, pitch, 0, width, static_cast<size_t>(c.size(0)),
                                          static_cast<cudaStream_t>(ctx.stream.state()->handle())),
                        "an empty product");
  }
}

}  // namespace lamina::ops::cuda
