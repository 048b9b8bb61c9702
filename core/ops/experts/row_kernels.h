// What the kernels that sort, gather and combine rows are launched with. Strides are in elements.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lamina::ops::cuda {

struct GroupRowsParams {
  int64_t num_pairs;
  int num_experts, k;
  const int32_t* chosen;
  const float* weights;
  int32_t* row_of;
  int32_t* position;
  float* pair_weight;
  int32_t* table;    // [experts, group_rows_chunks()]: pairs of an expert in a chunk, then those before the chunk
  int32_t* offsets;  // [experts + 1]
};
int64_t group_rows_chunks(int64_t num_pairs);
void launch_group_rows(const GroupRowsParams& p, cudaStream_t stream);

struct GatherRowsParams {
  int64_t num_rows, num_columns, x_stride, y_stride;
  int element_bytes;  // 2 or 4
  const void* x;
  const int32_t* index;
  void* y;
};
void launch_gather_rows(const GatherRowsParams& p, cudaStream_t stream);

struct CombineRowsParams {
  int64_t num_tokens, num_columns, k, x_stride, y_stride;
  bool x_low, y_low;  // bf16, not fp32
  bool accumulate;
  const void* x;
  const int32_t* position;
  void* y;
};
void launch_combine_rows(const CombineRowsParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
