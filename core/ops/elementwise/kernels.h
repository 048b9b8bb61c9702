// Flat data; a dtype is bf16 or fp32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cuda {

struct Flat {
  void* data;
  DType dtype;
};

// y = a + b. Limit: bytes, those of a, b and y.
struct AddParams {
  Flat a, b, y;
  int64_t count;
};
void launch_add(const AddParams& params, cudaStream_t stream);

// y = x, a NaN's sign and upper bits included. Limit: bytes, those of x and y.
struct CastParams {
  Flat x, y;
  int64_t count;
};
void launch_cast(const CastParams& params, cudaStream_t stream);

// The sum of squares of each block of core/ops/sum_order.h: those of the first tensor, then those of the next. Limit: bytes, those of
// the tensors. Their table travels among the parameters (11 KB of the 32 KB that there are).
struct SquareBlocksParams {
  static constexpr int most = 512;
  int num_tensors;
  Flat tensors[most];  // none is empty
  int64_t counts[most];
  int first_block[most + 1];  // of each tensor, and the number of all blocks
  double* sums;
};
void launch_square_blocks(const SquareBlocksParams& params, cudaStream_t stream);

// Every element becomes `value`, which its dtype holds. Limit: bytes, those of x.
struct FillParams {
  Flat x;
  float value;
  int64_t count;
};
void launch_fill(const FillParams& params, cudaStream_t stream);

// x = factor x. Limit: bytes, those of x twice.
struct ScaleParams {
  Flat x;
  float factor;
  int64_t count;
};
void launch_scale(const ScaleParams& params, cudaStream_t stream);

}  // namespace lamina::ops::cuda
