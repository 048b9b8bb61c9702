// What the host hands to the kernels of the short convolution. Strides in elements, of [batch, T, channels].
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/ops/gpu/step_group.h"

namespace lamina::ops::cuda {

constexpr int short_conv_max_taps = 8;

struct Sequences {
  void* data;
  int64_t batch_stride, token_stride;
};

// One token of several sequences, whose inputs before it lie anywhere. Of x and y each row is a sequence.
struct ShortConvStepParams {
  Sequences x, y;
  Sequences tails[step_group];  // token_stride: from one input to the next
  const float* weight;          // [channels, taps]
  int64_t channels;
  int sequences, taps;
  bool is_bf16, is_vector;  // is_vector: as below
};
void launch_short_conv_step(const ShortConvStepParams& p, cudaStream_t stream);

struct ShortConvParams {
  Sequences x, y;                  // of the forward
  Sequences dy, dx;                // of the backward
  const float* weight;             // [channels, taps]
  const int32_t* document_starts;  // [batch, num_tokens] or null
  float* dweight;                  // [channels, taps]
  float* partials;                 // [batch * num_chunks, channels, taps]
  int64_t batch, num_tokens, channels;
  int64_t chunk, num_chunks;  // tokens that a thread walks over
  int taps;
  bool is_bf16, is_vector;  // is_vector: four channels can be read at a time
};
int64_t short_conv_chunk(int64_t batch, int64_t num_tokens, int64_t channels);
void launch_short_conv_forward(const ShortConvParams& p, cudaStream_t stream);
void launch_short_conv_backward(const ShortConvParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
