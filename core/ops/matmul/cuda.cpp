#include "core/ops/matmul/implementations.h"

#include "core/device/cuda_device.h"
#include "core/ops/matmul/blas.h"

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
    for (int64_t row = 0; row < c.size(0); ++row) {
      const TensorView line = c.select(0, row);
      lamina::cuda::fill_zero(line.data, line.num_bytes(), ctx.stream);
    }
  }
}

}  // namespace lamina::ops::cuda
