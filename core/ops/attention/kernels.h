// What attention's kernels are given.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lamina::ops::cuda {

constexpr int attention_tile = 64;            // queries or keys; rows of statistics are padded to it
constexpr int attention_widest_tensor = 256;  // the tensor-core kernels' widest head

// [batch, T, heads, width], unit stride on the last axis; strides in elements.
struct AttentionTensor {
  void* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
  bool packs = false;  // addresses, strides and width are multiples of 16 bytes
};

struct AttentionParams {
  AttentionTensor q, k, v, o, d_o, dq, dk, dv;
  float* lse = nullptr;                      // [batch, heads, T]
  float* max_logit = nullptr;                // [batch, heads], or null
  float* tile_max = nullptr;                 // [batch, heads, tiles]: of every tile's queries; with max_logit
  float* lse2 = nullptr;                     // [batch, heads, T padded to tiles]: lse / ln 2, infinite in the padding
  float* delta = nullptr;                    // the same: rowsum(d_o o), zero in the padding
  const int32_t* document_starts = nullptr;  // [batch, T], or null
  int batch = 0, tokens = 0, heads = 0, d_qk = 0, d_v = 0;
  int keys = 0;   // of the forward: at least `tokens`, the queries being those of the last ones
  int tiles = 0;  // attention_num_tiles(tokens)
  float scale = 1.0f;
  bool bf16 = false;
};

inline int attention_num_tiles(int tokens) {
  return (tokens + attention_tile - 1) / attention_tile;
}

// bf16, both widths at most attention_widest_tensor, all tensors in packs.
void launch_attention_forward_tensor(const AttentionParams& p, cudaStream_t stream);
void launch_attention_backward_tensor(const AttentionParams& p,
                                      cudaStream_t stream);  // after launch_attention_statistics
// bf16 or fp32, any widths.
void launch_attention_forward_plain(const AttentionParams& p, cudaStream_t stream);
void launch_attention_backward_plain(const AttentionParams& p,
                                     cudaStream_t stream);                        // after launch_attention_statistics
void launch_attention_statistics(const AttentionParams& p, cudaStream_t stream);  // lse2 and delta
void launch_attention_max_logit(const AttentionParams& p, cudaStream_t stream);   // the largest of tile_max

// bf16 of the params' batch, tokens and heads; columns that `from` lacks become zero.
void launch_attention_copy(const AttentionTensor& from, const AttentionTensor& to, const AttentionParams& p,
                           int from_width, int to_width, cudaStream_t stream);

struct SharedKeysParams {
  void *nope = nullptr, *shared = nullptr, *k = nullptr;
  int64_t nope_token = 0, nope_head = 0, shared_token = 0, k_token = 0, k_head = 0;  // strides, in elements
  int64_t tokens = 0;
  int heads = 0, d_nope = 0, d_shared = 0;
  bool bf16 = false;
};
void launch_pack_shared_keys(const SharedKeysParams& p, cudaStream_t stream);
void launch_unpack_shared_keys(const SharedKeysParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
