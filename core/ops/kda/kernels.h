// Kimi Delta Attention's kernels for their host side. The algorithm is that of the CPU (core/ops/kda/cpu_chunk.h has the notation),
// cut differently: with B = Diag(beta), M = (I + A B)^-1 and the state S before a chunk of 64 tokens
//   E = M (v - (decayed k) S),  R = B E,  o = (decayed q) S + Aqk R,  S' = Diag(decay) S + (k decayed to the end)^T R
// Kernels, in this order; "pair": one head of one sequence:
//   chunk_table      where chunks begin, when documents are packed
//   prepare          per chunk and pair: decayed q and k, Aqk, M                             (forward and backward)
//   scan             per pair and 32 columns of S, chunk after chunk: o; or S and R for backward
//   scan_back        the same from the last chunk to the first, of the state's gradient dS:
//                      dR = Aqk^T dO + (k decayed to the end) dS,   beta Y = M^T B dR = dv
//                      dS before = Diag(decay) dS + (decayed q)^T dO - (decayed k)^T beta Y
//   gradients        per chunk and pair: dq, dk, dg, dbeta from S, dS, R, beta Y and dO
// Forward costs 6 K^2 + 3 C K + C^2 FLOPs per token and head (C = 64, K = V; 127 k for K = 128) and moves 2 (3 K + 2 V) + 4 K bytes
// of operands (bf16) and about as many of scratch, which takes longer than the tensor cores need. What else limits a kernel stands at its
// head.
// Scratch is indexed by token, and states by floor(token / 64), so its size doesn't depend on how many documents there are.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lamina::ops::cuda {

constexpr int kda_chunk = 64, kda_sub_block = 16, kda_max_width = 256;

struct KdaRows {  // element strides; unit stride on the last axis
  void* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
};

struct KdaChunks {
  const int32_t* starts = nullptr;  // [batch, tokens]: where a token's document begins; null: one document per sequence
  int32_t* table = nullptr;         // [batch, tokens + 1]: first tokens of the chunks, then the number of tokens
  int32_t* counts = nullptr;        // [batch]
  int64_t tokens = 0;
};

// Padded to multiples of 16: k_padded, v_padded. There are 64 more rows than tokens, so that a whole chunk may be read from any of them.
struct KdaParams {
  bool bf16 = false;
  bool fast = false;  // 128 x 128 in bf16, every row aligned to 16 bytes
  KdaChunks chunks;
  KdaRows q, k, v, g, beta, o, d_o, dq, dk, dv, dg, dbeta;
  int64_t batch = 0, heads = 0;
  int d_k = 0, d_v = 0, k_padded = 0, v_padded = 0;
  float scale = 1.0f;
  const float *initial_state = nullptr, *d_final_state = nullptr;  // [batch, heads, d_k, d_v] or null
  float *final_state = nullptr, *d_initial_state = nullptr;

  // Scratch for the pairs [first_pair, first_pair + num_pairs); elements of the operands' dtype unless said otherwise.
  int64_t first_pair = 0, num_pairs = 0;
  int64_t rows = 0, slots = 0;                                           // tokens + 64, tokens / 64 + 2
  void *q_decayed = nullptr, *k_decayed = nullptr, *k_to_end = nullptr;  // [pair, row, k_padded]
  void *m = nullptr, *aqk = nullptr;                                     // [pair, row, 64]
  float* decays = nullptr;                                               // [pair, slot, k_padded], fp32
  // Of backward only.
  void *r = nullptr, *beta_y = nullptr, *d_o_copy = nullptr;  // [pair, row, v_padded]; the last not for `fast`
  void *states = nullptr, *d_states = nullptr;                // [pair, slot, k_padded, v_padded]
};

void launch_kda_chunk_table(const KdaParams& params, cudaStream_t stream);
void launch_kda_prepare(const KdaParams& params, cudaStream_t stream);
void launch_kda_scan(const KdaParams& params, bool for_backward, cudaStream_t stream);
void launch_kda_scan_back(const KdaParams& params, cudaStream_t stream);
void launch_kda_gradients(const KdaParams& params, cudaStream_t stream);

}  // namespace lamina::ops::cuda
