// What the router's kernels are launched with. All matrices are contiguous, all pointers device memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lamina::ops::cuda {

struct RouterForwardParams {
  int64_t num_tokens;
  int num_experts, k;
  float scaling;
  bool renormalize;
  const float* logits;
  const float* bias;
  float* scores;
  int32_t* chosen;
  float* weights;
  uint32_t* keys;  // [tokens, experts] where a token's keys don't fit into shared memory, else null
  // Of the balance loss; counts null: not wanted.
  int64_t tokens_per_sequence;
  float* totals;  // [tokens]: sums of scores
  int* counts;    // [sequences, experts], zero before the call: unbiased choices
};
bool router_keys_fit(int num_experts);  // into shared memory
void launch_router_forward(const RouterForwardParams& p, cudaStream_t stream);

struct RouterBalanceParams {
  int64_t num_sequences, tokens_per_sequence;
  int num_experts, k;
  const float* scores;
  const float* totals;
  const int* counts;
  float* partial;  // [sequences, router_balance_chunks(), experts]
  float* fractions;
  float* balance;
};
int64_t router_balance_chunks(int64_t tokens_per_sequence);
void launch_router_balance(const RouterBalanceParams& p, cudaStream_t stream);

struct RouterBackwardParams {
  int64_t num_tokens, tokens_per_sequence;
  int num_experts, k;
  float scaling, balance_scale;
  bool renormalize, low_precision;  // d_logits is bf16
  const float* scores;
  const int32_t* chosen;
  const float* d_weights;
  const float* fractions;  // may be null
  void* d_logits;
};
void launch_router_backward(const RouterBackwardParams& p, cudaStream_t stream);

struct RouterObserveParams {
  int64_t num_tokens;
  int num_experts, k;
  const int32_t* chosen;
  const float* scores;
  int* counts;              // [experts], added to
  double* entropy;          // added to; null: not wanted
  double* partial_entropy;  // [router_observe_blocks()]
};
int64_t router_observe_blocks(int64_t num_tokens);
void launch_router_observe(const RouterObserveParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
