// What the experts' products are launched with. Everything travels as parameters of the kernel (4 KB of the 32 KB that there are):
// a table in device memory would come from pageable memory of the host, and its copy would wait for all work issued before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace lamina::ops::cuda {

constexpr int grouped_experts = 256;  // of one launch

// bf16 operands, sums in fp32. Strides are in elements; an expert's matrix is [out, in], contiguous.
struct GroupedProductParams {
  enum class Kind : int { forward, input_gradient, weight_gradient };
  Kind kind;
  bool packed;      // rows and matrices that are read may be read by 16 bytes
  bool out_packed;  // the result may be written by 16 bytes (bf16), or by 8 (fp32)
  bool out_low;     // bf16; never of weight gradients
  int num_experts;
  int64_t in, out;
  const void* rows;    // x, or dy
  const void* inputs;  // weight gradient only: x
  void* result;        // y, or dx; not of weight gradients
  int64_t rows_stride, inputs_stride, result_stride;
  void* matrices[grouped_experts];      // w, or dw (fp32, added to)
  int begin[grouped_experts + 1];       // rows of expert e: [begin[e], begin[e + 1])
  int first_tile[grouped_experts + 1];  // written by launch_grouped_product
};
void launch_grouped_product(GroupedProductParams& p, cudaStream_t stream);

// The three tables of addresses that cuBLAS wants in device memory.
struct AddressTableParams {
  int count;
  void** matrices;  // [count] each
  void** rows;
  void** results;
  char* first_row;
  char* first_result;
  int64_t row_bytes, result_bytes;
  const void* matrix[grouped_experts];
  int row[grouped_experts];
};
void launch_write_addresses(const AddressTableParams& p, cudaStream_t stream);

}  // namespace lamina::ops::cuda
