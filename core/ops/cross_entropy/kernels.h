// Limit: bytes: the logits twice, and dlogits; without dlogits the logits once. One pass finds the largest logit and the sum
// of the exponentials together, the next writes the gradient.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cuda {

struct SoftmaxCrossEntropyParams {
  const float* logits;  // [rows, vocab]
  const int32_t* targets;
  float* token_loss;
  void* dlogits;  // [rows, vocab], may be logits; or null
  DType dlogits_dtype;
  float grad_scale;
  int64_t rows, vocab;
};
void launch_softmax_cross_entropy(const SoftmaxCrossEntropyParams& params, cudaStream_t stream);

}  // namespace lamina::ops::cuda
