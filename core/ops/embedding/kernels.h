// Strides are in elements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cuda {

// Limit: bytes, those of y twice.
struct EmbeddingForwardParams {
  DType dtype;
  const int32_t* tokens;
  const void* table;
  void* y;
  int64_t table_stride, y_stride;
  int64_t count, dim;
};
void launch_embedding_forward(const EmbeddingForwardParams& params, cudaStream_t stream);

// The positions of every token that occurs, in order: those of a token lie together in `sorted`, from starts[token] on, counts[token]
// of them. Where the tokens' shares lie differs from run to run, what is in them does not. Limit: latency, a few passes over
// `count` integers.
struct TokenPositionsParams {
  const int32_t* tokens;
  int32_t* counts;  // [vocab], zero before
  int32_t* starts;  // [vocab]
  int32_t* slots;   // [count]: 0 for one position of each token that occurs
  int32_t* placed;  // [count], scratch
  int32_t* sorted;  // [count]
  int32_t* cursor;  // [1], zero before
  int64_t count;
};
void launch_token_positions(const TokenPositionsParams& params, cudaStream_t stream);

// dtable[token] += the token's rows of dy in order. Limit: bytes, those of dy, and of the rows of dtable that occur twice; a
// token with most of the positions is limited by the latency of its chain of sums.
struct EmbeddingBackwardParams {
  DType dtype;  // of dy
  TokenPositionsParams positions;
  const void* dy;
  float* dtable;
  int64_t dy_stride, dtable_stride;
  int64_t dim;
};
void launch_embedding_backward(const EmbeddingBackwardParams& params, cudaStream_t stream);

}  // namespace lamina::ops::cuda
