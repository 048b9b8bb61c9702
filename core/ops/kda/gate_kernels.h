// What the host hands to the kernels around Kimi Delta Attention. Strides in elements; statistics are contiguous.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lamina::ops::cuda {

constexpr int kda_max_head_dim = 1024, kda_max_heads = 65535;

struct HeadRows {  // [tokens, heads, dim]
  void* data;
  int64_t token_stride, head_stride;
};
struct HeadShape {
  int64_t tokens;
  int heads, dim;
  bool is_bf16, is_vector;  // is_vector: four elements can be read at a time
};
// Blocks that share a head's tokens where something is summed over them.
int kda_token_blocks(int64_t tokens, int heads);

struct L2NormParams {
  HeadShape shape;
  HeadRows in, dy, out;  // x and y; or y, dy and dx
  float eps;
  float* rstd;
};
void launch_l2_norm_forward(const L2NormParams& p, cudaStream_t stream);
void launch_l2_norm_backward(const L2NormParams& p, cudaStream_t stream);

struct KdaGateParams {
  HeadShape shape;
  HeadRows f, df;
  const float *dt_bias, *a_log;
  bool is_bounded;
  float lower_bound;
  void *beta_logits, *dbeta_logits;
  int64_t logits_stride, dlogits_stride;  // of a token
  float *g, *beta;
  const float *dg, *dbeta;
  float *d_dt_bias, *d_a_log;
  float* partials;  // [token blocks, heads * dim + heads]: of dt_bias, then of a_log
  int token_blocks;
};
void launch_kda_gate_forward(const KdaGateParams& p, cudaStream_t stream);
void launch_kda_gate_backward(const KdaGateParams& p, cudaStream_t stream);

struct GatedRmsNormParams {
  HeadShape shape;
  HeadRows o, gate, y, dy, d_o, dgate;  // backward: y null unless it is wanted
  const float* weight;
  float eps;
  float *rstd, *dweight;
  float* partials;  // [token blocks * heads, dim]
  int token_blocks;
};
void launch_gated_rms_norm_forward(const GatedRmsNormParams& p, cudaStream_t stream);
void launch_gated_rms_norm_backward(const GatedRmsNormParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
