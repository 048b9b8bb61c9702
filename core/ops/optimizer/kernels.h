// The passes of AdamW and Muon over flat fp32 arrays. Every product and sum is rounded as in the reference, so the results have
// its bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/dtype.h"

namespace lamina::ops::cuda {

struct RoundedParam {
  void* data;  // or null
  DType dtype;
};

// Limit: bytes, 28 per element and the parameter.
struct AdamWParams {
  float *master, *m, *v;
  const float* grad;
  RoundedParam param;
  int64_t count;
  float beta1, one_minus_beta1, beta2, one_minus_beta2, grad_scale, decay, step_size, inverse_correction2, eps;
};
void launch_adamw(const AdamWParams& params, cudaStream_t stream);

// Limit: bytes, 16 per element.
struct MuonMomentumParams {
  const float* grad;
  float *buffer, *out;
  int64_t count;
  float momentum, grad_scale;
};
void launch_muon_momentum(const MuonMomentumParams& params, cudaStream_t stream);

// Limit: bytes, 12 per element and the parameter.
struct MuonApplyParams {
  const float* update;
  float* master;
  RoundedParam param;
  int64_t count;
  float decay, step;
};
void launch_muon_apply(const MuonApplyParams& params, cudaStream_t stream);

}  // namespace lamina::ops::cuda
