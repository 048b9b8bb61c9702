#include "cublas_v2.h"

#include <algorithm>
#include <string>
#include <vector>

#include "device.h"
#include "errors.h"
#include "gemm.h"
#include "memory.h"
#include "stream.h"

struct cublasContext {
  int device = 0;
  cudaStream_t stream = nullptr;
  cublasMath_t math = CUBLAS_DEFAULT_MATH;
};

namespace lamina_emulator {
namespace {

cublasStatus_t status_of(cudaError_t error) {
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

cublasStatus_t check_types(cudaDataType a, cudaDataType b, cudaDataType c, cublasComputeType_t compute, bool same) {
  const bool plain = compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC;
  const bool f32 = a == CUDA_R_32F && b == CUDA_R_32F && c == CUDA_R_32F;
  const bool bf16 = a == CUDA_R_16BF && b == CUDA_R_16BF && (c == CUDA_R_16BF || (c == CUDA_R_32F && !same));
  return (f32 && (plain || compute == CUBLAS_COMPUTE_32F_FAST_TF32)) || (bf16 && plain) ? CUBLAS_STATUS_SUCCESS
                                                                                        : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t check_shape(const Gemm& gemm) {
  if (gemm.m < 0 || gemm.n < 0 || gemm.k < 0) return CUBLAS_STATUS_INVALID_VALUE;
  const bool fits = gemm.lda >= std::max(1, gemm.transpose_a ? gemm.k : gemm.m) &&
                    gemm.ldb >= std::max(1, gemm.transpose_b ? gemm.n : gemm.k) && gemm.ldc >= std::max(1, gemm.m);
  return fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

Gemm gemm_of(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k,
             cudaDataType type_in, int lda, int ldb, cudaDataType type_out, int ldc, cublasComputeType_t compute) {
  Gemm gemm;
  gemm.transpose_a = transa != CUBLAS_OP_N;
  gemm.transpose_b = transb != CUBLAS_OP_N;
  gemm.m = m;
  gemm.n = n;
  gemm.k = k;
  gemm.lda = lda;
  gemm.ldb = ldb;
  gemm.ldc = ldc;
  gemm.bf16_in = type_in == CUDA_R_16BF;
  gemm.bf16_out = type_out == CUDA_R_16BF;
  gemm.tf32 = type_in == CUDA_R_32F && compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
              (compute == CUBLAS_COMPUTE_32F_FAST_TF32 || handle->math == CUBLAS_TF32_TENSOR_OP_MATH);
  return gemm;
}

// Where an operand leaves its memory the device is lost, as a real one would be.
bool in_memory(const Gemm& gemm, const char* name, const void* data, int rows, int columns, int64_t ld, bool bf16,
               int device) {
  if (rows == 0 || columns == 0) return true;
  const auto num_bytes = static_cast<size_t>((columns - 1) * ld + rows) * (bf16 ? 2 : 4);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % (bf16 ? 2 : 4) == 0;
  if (aligned && memory().device_of(data) == device && memory().holds(data, num_bytes)) return true;
  set_device_error(device, cudaErrorIllegalAddress,
                   "a product of cuBLAS with m " + std::to_string(gemm.m) + ", n " + std::to_string(gemm.n) + ", k " +
                       std::to_string(gemm.k) + ": operand " + name + " of " + std::to_string(num_bytes) +
                       " bytes is not in one " + "allocation of GPU " + std::to_string(device) + " (" +
                       memory().describe(data) + ")");
  return false;
}

void multiply_checked(const Gemm& gemm, int device) {
  if (gemm.m == 0 || gemm.n == 0) return;
  const bool reads = gemm.alpha != 0 && gemm.k > 0;
  if (!in_memory(gemm, "C", gemm.c, gemm.m, gemm.n, gemm.ldc, gemm.bf16_out, device)) return;
  if (!reads) {
    Gemm scale = gemm;
    scale.k = 0;
    multiply(scale);
    return;
  }
  const int rows_a = gemm.transpose_a ? gemm.k : gemm.m, columns_a = gemm.transpose_a ? gemm.m : gemm.k;
  const int rows_b = gemm.transpose_b ? gemm.n : gemm.k, columns_b = gemm.transpose_b ? gemm.k : gemm.n;
  if (in_memory(gemm, "A", gemm.a, rows_a, columns_a, gemm.lda, gemm.bf16_in, device) &&
      in_memory(gemm, "B", gemm.b, rows_b, columns_b, gemm.ldb, gemm.bf16_in, device))
    multiply(gemm);
}

}  // namespace
}  // namespace lamina_emulator

using namespace lamina_emulator;

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (usable() != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasContext;
  (*handle)->device = current_device();
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  wait_for_stream(handle->stream);
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = 130000;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t streamId) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->stream = streamId;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetStream(cublasHandle_t handle, cudaStream_t* streamId) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  *streamId = handle->stream;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, size_t workspaceSizeInBytes) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) return CUBLAS_STATUS_INVALID_VALUE;
  if (workspaceSizeInBytes > 0 && !memory().holds(workspace, workspaceSizeInBytes)) return CUBLAS_STATUS_INVALID_VALUE;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  handle->math = static_cast<cublasMath_t>(mode & 0xf);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  return mode == CUBLAS_POINTER_MODE_HOST ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

const char* cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
  }
}

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an invalid value was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the GPU";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality is not supported";
    default:
      return "an internal operation failed";
  }
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb,
                                          int m, int n, int k, const void* alpha, const void* A, cudaDataType Atype,
                                          int lda, long long int strideA, const void* B, cudaDataType Btype, int ldb,
                                          long long int strideB, const void* beta, void* C, cudaDataType Ctype, int ldc,
                                          long long int strideC, int batchCount, cublasComputeType_t computeType,
                                          cublasGemmAlgo_t) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (alpha == nullptr || beta == nullptr || batchCount < 0) return CUBLAS_STATUS_INVALID_VALUE;
  cublasStatus_t status = check_types(Atype, Btype, Ctype, computeType, false);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  Gemm gemm = gemm_of(handle, transa, transb, m, n, k, Atype, lda, ldb, Ctype, ldc, computeType);
  status = check_shape(gemm);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  gemm.alpha = *static_cast<const float*>(alpha);
  gemm.beta = *static_cast<const float*>(beta);
  return status_of(enqueue(handle->stream, Work::device, [=, device = handle->device]() mutable {
    const int64_t size_in = gemm.bf16_in ? 2 : 4, size_out = gemm.bf16_out ? 2 : 4;
    for (int64_t i = 0; i < batchCount; ++i) {
      gemm.a = static_cast<const std::byte*>(A) + i * strideA * size_in;
      gemm.b = static_cast<const std::byte*>(B) + i * strideB * size_in;
      gemm.c = static_cast<std::byte*>(C) + i * strideC * size_out;
      multiply_checked(gemm, device);
    }
  }));
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n,
                            int k, const void* alpha, const void* A, cudaDataType Atype, int lda, const void* B,
                            cudaDataType Btype, int ldb, const void* beta, void* C, cudaDataType Ctype, int ldc,
                            cublasComputeType_t computeType, cublasGemmAlgo_t algo) {
  return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C,
                                    Ctype, ldc, 0, 1, computeType, algo);
}

namespace {

// What a list of products with pointers in device memory has in common.
cublasStatus_t multiply_lists(cublasHandle_t handle, std::vector<Gemm> gemms, std::vector<int> sizes,
                              const void* const* a, const void* const* b, void* const* c) {
  size_t total = 0;
  for (const int size : sizes) total += static_cast<size_t>(size);
  if (total == 0) return CUBLAS_STATUS_SUCCESS;
  return status_of(enqueue(
      handle->stream, Work::device,
      [gemms = std::move(gemms), sizes = std::move(sizes), a, b, c, total, device = handle->device]() mutable {
        for (const void* list : {static_cast<const void*>(a), static_cast<const void*>(b), static_cast<const void*>(c)})
          if (memory().device_of(list) != device || !memory().holds(list, total * sizeof(void*))) {
            set_device_error(device, cudaErrorIllegalAddress,
                             "a batched product of cuBLAS: the list of pointers is not in device memory (" +
                                 memory().describe(list) + ")");
            return;
          }
        size_t at = 0;
        for (size_t group = 0; group < gemms.size(); ++group)
          for (int i = 0; i < sizes[group]; ++i, ++at) {
            gemms[group].a = a[at];
            gemms[group].b = b[at];
            gemms[group].c = c[at];
            multiply_checked(gemms[group], device);
          }
      }));
}

}  // namespace

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m,
                                   int n, int k, const void* alpha, const void* const Aarray[], cudaDataType Atype,
                                   int lda, const void* const Barray[], cudaDataType Btype, int ldb, const void* beta,
                                   void* const Carray[], cudaDataType Ctype, int ldc, int batchCount,
                                   cublasComputeType_t computeType, cublasGemmAlgo_t) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (alpha == nullptr || beta == nullptr || batchCount < 0) return CUBLAS_STATUS_INVALID_VALUE;
  cublasStatus_t status = check_types(Atype, Btype, Ctype, computeType, false);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  Gemm gemm = gemm_of(handle, transa, transb, m, n, k, Atype, lda, ldb, Ctype, ldc, computeType);
  status = check_shape(gemm);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  gemm.alpha = *static_cast<const float*>(alpha);
  gemm.beta = *static_cast<const float*>(beta);
  return multiply_lists(handle, {gemm}, {batchCount}, Aarray, Barray, Carray);
}

cublasStatus_t cublasGemmGroupedBatchedEx(cublasHandle_t handle, const cublasOperation_t transa_array[],
                                          const cublasOperation_t transb_array[], const int m_array[],
                                          const int n_array[], const int k_array[], const void* alpha_array,
                                          const void* const Aarray[], cudaDataType_t Atype, const int lda_array[],
                                          const void* const Barray[], cudaDataType_t Btype, const int ldb_array[],
                                          const void* beta_array, void* const Carray[], cudaDataType_t Ctype,
                                          const int ldc_array[], int group_count, const int group_size[],
                                          cublasComputeType_t computeType) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (group_count < 0) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status = check_types(Atype, Btype, Ctype, computeType, true);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  std::vector<Gemm> gemms;
  for (int i = 0; i < group_count; ++i) {
    Gemm gemm = gemm_of(handle, transa_array[i], transb_array[i], m_array[i], n_array[i], k_array[i], Atype,
                        lda_array[i], ldb_array[i], Ctype, ldc_array[i], computeType);
    if (check_shape(gemm) != CUBLAS_STATUS_SUCCESS || group_size[i] < 0) return CUBLAS_STATUS_INVALID_VALUE;
    gemm.alpha = static_cast<const float*>(alpha_array)[i];
    gemm.beta = static_cast<const float*>(beta_array)[i];
    gemms.push_back(gemm);
  }
  return multiply_lists(handle, std::move(gemms), std::vector<int>(group_size, group_size + group_count), Aarray,
                        Barray, Carray);
}
