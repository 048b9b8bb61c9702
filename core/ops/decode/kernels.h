// What the host hands to the kernels of single tokens. Where the memory of each sequence lies is among the parameters, for a group of
// sequences at a time. Strides in elements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/ops/gpu/step_group.h"

namespace lamina::ops::cuda {

// [sequences, heads, width], unit stride on the last axis.
struct StepRows {
  void* data;
  int64_t sequence, head;
};

struct KdaStepParams {
  StepRows q, k, v, o;
  StepRows g, beta;           // fp32
  float* states[step_group];  // each [heads, d_k, d_v]
  int sequences, heads, d_k, d_v;
  float scale;
  bool is_bf16;
};
void launch_kda_step(const KdaStepParams& p, cudaStream_t stream);

constexpr int latent_widest = 2304, latent_widest_odd = 1152;  // elements of a latent
// The tensor cores' kernel: elements of a latent, of its c, and heads of a block.
constexpr int latent_widest_tensor = 576, latent_highest_tensor = 512, latent_tensor_heads = 32;

struct LatentParams {
  const void* absorbed;             // [sequences, heads, rank]: queries against c; fp32, bf16 on tensor cores
  StepRows q_shared;                // [sequences, heads, d_shared]: queries against k_shared
  const void* latents[step_group];  // each [tokens, rank + d_shared]
  int64_t tokens[step_group], tokens_per_part[step_group];
  int first_part[step_group + 1];
  float* sums;               // [parts, heads, rank]: of c, weighted relative to the part's largest logit
  float *largest, *weights;  // [parts, heads]: that logit in powers of two, and the sum of the weights
  void* mean;                // [sequences, heads, rank]: the weighted mean of c, in the latents' dtype
  int sequences, heads, rank, d_shared;
  float scale;
  bool is_bf16;
  bool in_pairs;         // two elements can be read at a time
  bool on_tensor_cores;  // bf16, within the widths above; latents, rank and q_shared in multiples of 16 bytes
};
void launch_latent_attention(const LatentParams& p, cudaStream_t stream);
void launch_latent_parts_tensor(const LatentParams& p, cudaStream_t stream);  // its first half, on tensor cores

struct CopiedRows {
  const void* from;
  void* to;
  int64_t from_step, to_step, rows, columns;  // in units of `unit_bytes`
};
struct CopyRowsParams {
  CopiedRows pairs[step_group];
  int num_pairs;
  int unit_bytes;  // 2, 4 or 16
};
void launch_copy_rows(const CopyRowsParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
