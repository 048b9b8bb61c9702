// The second half of a deterministic sum: blocks leave partial sums in scratch, this adds them in their order.
#pragma once

#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {

constexpr int partial_sum_rows = 16;  // threads that share a column

// out[column] += the sum of column `column` over `count` rows that lie `stride` apart; a block has 32 columns.
static __global__ void __launch_bounds__(warp_size* partial_sum_rows)
    partial_sums_kernel(float* out, const float* partials, int64_t count, int64_t stride, int64_t columns) {
  __shared__ float shared[partial_sum_rows][warp_size + 1];
  const int lane = static_cast<int>(threadIdx.x), part = static_cast<int>(threadIdx.y);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * warp_size + lane;
  float sum = 0.0f;
  if (column < columns) {
    for (int64_t row = part; row < count; row += partial_sum_rows) sum += partials[row * stride + column];
  }
  shared[part][lane] = sum;
  __syncthreads();
  if (part != 0 || column >= columns) return;
#pragma unroll
  for (int other = 1; other < partial_sum_rows; ++other) sum += shared[other][lane];
  out[column] += sum;
}

inline void launch_partial_sums(float* out, const float* partials, int64_t count, int64_t stride, int64_t columns,
                                cudaStream_t stream) {
  launch(partial_sums_kernel, dim3(blocks_for(columns, warp_size)), dim3(warp_size, partial_sum_rows), 0, stream, out,
         partials, count, stride, columns);
}

}  // namespace lamina::ops::cuda
