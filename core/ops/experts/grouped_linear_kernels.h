// What the experts' products are launched with. Addresses travel as parameters of the kernel (2 KB of the 32 KB that there are), how
// many rows each expert has is read on the device: the router has chosen it there, and the host need not wait to know it.
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
  int64_t num_rows;    // of all experts; not of weight gradients
  const void* rows;    // x, or dy
  const void* inputs;  // weight gradient only: x
  void* result;        // y, or dx; not of weight gradients
  int64_t rows_stride, inputs_stride, result_stride;
  const int32_t* begin;  // [num_experts + 1] in device memory: the rows of expert e are [begin[e], begin[e + 1])
  void* matrices[grouped_experts];  // w, or dw (fp32, added to)
};
void launch_grouped_product(const GroupedProductParams& p, cudaStream_t stream);

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
