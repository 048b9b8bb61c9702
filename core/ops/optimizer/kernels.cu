#include "core/ops/optimizer/kernels.h"

#include "core/ops/gpu/packs.h"

namespace lamina::ops::cuda {
namespace {

constexpr int threads = 256, elements = 4;  // per thread: one load of 16 bytes from each array

__device__ __forceinline__ int64_t first_element() {
  return (static_cast<int64_t>(blockIdx.x) * threads + static_cast<int64_t>(threadIdx.x)) * elements;
}

template <bool aligned>
__device__ __forceinline__ void store_param(const RoundedParam& param, int64_t first, const float (&w)[elements],
                                            int64_t left) {
  if (param.data == nullptr) return;
  if (param.dtype == DType::bf16)
    store_pack<aligned>(static_cast<__nv_bfloat16*>(param.data) + first, w, left);
  else
    store_pack<aligned>(static_cast<float*>(param.data) + first, w, left);
}

template <bool aligned>
__global__ void __launch_bounds__(threads) adamw_kernel(const AdamWParams p) {
  const int64_t first = first_element(), left = p.count - first;
  if (left <= 0) return;
  float w[elements], m[elements], v[elements], g[elements];
  load_pack<aligned>(g, p.grad + first, left);
  load_pack<aligned>(m, p.m + first, left);
  load_pack<aligned>(v, p.v + first, left);
  load_pack<aligned>(w, p.master + first, left);
#pragma unroll
  for (int i = 0; i < elements; ++i) {
    g[i] *= p.grad_scale;
    m[i] = fmaf(p.one_minus_beta1, g[i], __fmul_rn(p.beta1, m[i]));
    v[i] = fmaf(p.one_minus_beta2, __fmul_rn(g[i], g[i]), __fmul_rn(p.beta2, v[i]));
    const float root = __fadd_rn(sqrtf(__fmul_rn(v[i], p.inverse_correction2)), p.eps);
    w[i] = fmaf(p.decay, w[i], -(__fmul_rn(p.step_size, m[i]) / root));
  }
  store_pack<aligned>(p.m + first, m, left);
  store_pack<aligned>(p.v + first, v, left);
  store_pack<aligned>(p.master + first, w, left);
  store_param<aligned>(p.param, first, w, left);
}

template <bool aligned>
__global__ void __launch_bounds__(threads) muon_momentum_kernel(const MuonMomentumParams p) {
  const int64_t first = first_element(), left = p.count - first;
  if (left <= 0) return;
  float g[elements], buffer[elements];
  load_pack<aligned>(g, p.grad + first, left);
  load_pack<aligned>(buffer, p.buffer + first, left);
#pragma unroll
  for (int i = 0; i < elements; ++i) {
    g[i] = __fmul_rn(p.grad_scale, g[i]);
    buffer[i] = fmaf(p.momentum, buffer[i], g[i]);
    g[i] = fmaf(p.momentum, buffer[i], g[i]);
  }
  store_pack<aligned>(p.buffer + first, buffer, left);
  store_pack<aligned>(p.out + first, g, left);
}

template <bool aligned>
__global__ void __launch_bounds__(threads) muon_apply_kernel(const MuonApplyParams p) {
  const int64_t first = first_element(), left = p.count - first;
  if (left <= 0) return;
  float w[elements], update[elements];
  load_pack<aligned>(w, p.master + first, left);
  load_pack<aligned>(update, p.update + first, left);
#pragma unroll
  for (int i = 0; i < elements; ++i) w[i] = fmaf(p.decay, w[i], -__fmul_rn(p.step, update[i]));
  store_pack<aligned>(p.master + first, w, left);
  store_param<aligned>(p.param, first, w, left);
}

unsigned num_blocks(int64_t count) {
  return blocks_for(count, int64_t{threads} * elements);
}

}  // namespace

void launch_adamw(const AdamWParams& p, cudaStream_t stream) {
  const bool is_aligned = are_aligned({p.master, p.m, p.v, p.grad, p.param.data});
  launch(is_aligned ? adamw_kernel<true> : adamw_kernel<false>, num_blocks(p.count), threads, 0, stream, p);
}

void launch_muon_momentum(const MuonMomentumParams& p, cudaStream_t stream) {
  const bool is_aligned = are_aligned({p.grad, p.buffer, p.out});
  launch(is_aligned ? muon_momentum_kernel<true> : muon_momentum_kernel<false>, num_blocks(p.count), threads, 0, stream,
         p);
}

void launch_muon_apply(const MuonApplyParams& p, cudaStream_t stream) {
  const bool is_aligned = are_aligned({p.update, p.master, p.param.data});
  launch(is_aligned ? muon_apply_kernel<true> : muon_apply_kernel<false>, num_blocks(p.count), threads, 0, stream, p);
}

}  // namespace lamina::ops::cuda
