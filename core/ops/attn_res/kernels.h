// What the host hands to the kernels of Attention Residuals. Everything here is read by nvcc too: plain data only.
//
// Rows are [tokens, dim] with unit stride on the last axis; `stride` is in elements. Strides of statistics likewise.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lamina::ops::cuda {

constexpr int attn_res_max_sources = 128, attn_res_max_queries = 64;  // what a launch's parameters hold
constexpr int attn_res_max_threads = 512;                             // of a block; a token's row is spread over them
constexpr int attn_res_few_threads = 288;                             // of one for rows of up to 8 * 288 elements
constexpr int attn_res_max_dim = 16 * attn_res_max_threads;

struct Rows {
  void* data;
  int64_t stride;
};
struct Vector {  // [dim]
  const void* data;
  bool is_bf16;
};
struct QueryVectors {
  Vector query, norm_weight;
};
struct QuerySums {  // fp32 [dim]
  float *query, *norm_weight;
};

// The product w (.) g of every query, as fp32 [num_queries, dim]. Sets the work counters of the launches that follow to zero.
constexpr int attn_res_work_counters = attn_res_max_queries / 8;  // a launch on tensor cores serves 8 queries
struct WeightedQueries {
  QueryVectors queries[attn_res_max_queries];
  float* out;
  int* work_counters;
  int64_t dim;
  int num_queries;
};
void launch_weighted_queries(const WeightedQueries& p, cudaStream_t stream);

struct Phase1ForwardParams {
  Rows sources[attn_res_max_sources];
  Rows mean[attn_res_max_queries];
  const float* weighted;  // [num_queries, dim]
  int* work_counter;
  float *rstd, *logit, *lse;
  int64_t rstd_stride, logit_query_stride, logit_source_stride, lse_stride;
  int64_t tokens;
  int dim, num_sources, num_queries;
  float eps;
  bool is_bf16, is_vector;  // is_vector: all rows can be read 16 bytes at a time
};
void launch_phase1_forward(const Phase1ForwardParams& p, cudaStream_t stream);

struct MergeForwardParams {
  Rows mean, partial, delta, partial_sum, h, y;  // partial, delta: null where the contract has none
  const float* lse;
  QueryVectors query;
  Vector norm_weight;
  float *partial_rstd, *partial_logit, *lse_total, *h_rstd;
  float eps, norm_eps;
  int64_t tokens;
  int dim;
  bool is_bf16, is_vector;
};
void launch_merge_forward(const MergeForwardParams& p, cudaStream_t stream);

struct MergeBackwardParams {
  Rows h, dy, partial, dh, dpartial;
  bool dh_is_bf16, dpartial_is_bf16, accumulate;
  const float *h_rstd, *partial_rstd, *partial_logit, *lse_total;
  float* dh_dot_h;
  QueryVectors query;
  Vector norm_weight;
  float* partials;  // [num_blocks, 2, dim]: sums for norm_weight, then for w (.) g
  int num_blocks;
  int64_t tokens;
  int dim;
  bool is_bf16, is_vector;
};
int merge_backward_blocks(int64_t tokens);
void launch_merge_backward(const MergeBackwardParams& p, cudaStream_t stream);

struct Phase1BackwardParams {
  Rows sources[attn_res_max_sources];
  Rows dsources[attn_res_max_sources];
  bool accumulate[attn_res_max_sources];
  Rows dh[attn_res_max_queries];
  const float *lse_total[attn_res_max_queries], *dh_dot_h[attn_res_max_queries];
  bool dh_is_bf16;
  const float* weighted;  // [num_queries, dim]
  int* work_counter;
  const float *rstd, *logit;
  int64_t rstd_stride, logit_query_stride, logit_source_stride;
  float* partials;         // [num_partials, num_queries, dim]: sums for w (.) g
  int64_t partial_stride;  // of one of these
  int num_partials;        // of blocks, or on tensor cores of tiles of tokens
  int64_t tokens;
  int dim, num_sources, num_queries;
  bool is_bf16, is_vector;
};
int phase1_backward_partials(const Phase1BackwardParams& p);
void launch_phase1_backward(const Phase1BackwardParams& p, cudaStream_t stream);

// sums[i] += what the blocks left for it, in the blocks' order; of a w (.) g, times g to the query and times w to its norm.
struct ColumnSums {
  struct Output {
    QueryVectors query;  // null data: `sums.query` receives the plain sum
    QuerySums sums;
  } outputs[attn_res_max_queries];
  const float* partials;  // [num_blocks, num_outputs or more, dim]
  int64_t block_stride;
  int num_blocks, num_outputs, dim;
};
void launch_column_sums(const ColumnSums& p, cudaStream_t stream);

struct DepthWeightsParams {
  const float *logit, *partial_logit, *lse_total;
  int64_t logit_stride, tokens;
  int num_sources;
  int num_weights;  // num_sources, and the partial sum where there is one
  double* means;    // [num_weights + 2]: then the entropy and the largest weight
};
void launch_depth_weights(const DepthWeightsParams& p, cudaStream_t stream);

struct SourceCosinesParams {
  Rows sources[attn_res_max_sources + 1];  // with the partial sum
  int64_t num_tokens, token_step;
  int dim, num_sources;
  bool is_bf16;
  double* cosines;  // [num_sources (num_sources - 1) / 2]
};
void launch_source_cosines(const SourceCosinesParams& p, cudaStream_t stream);

// The paths on tensor cores: bf16 sources, up to 16 of them, up to 8 queries. launch_phase1_* choose them.
bool phase1_forward_fits_tensor_cores(const Phase1ForwardParams& p);
void launch_phase1_forward_tensor_cores(const Phase1ForwardParams& p, cudaStream_t stream);
bool phase1_backward_fits_tensor_cores(const Phase1BackwardParams& p);
int phase1_backward_tiles(int64_t tokens);
void launch_phase1_backward_tensor_cores(const Phase1BackwardParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
