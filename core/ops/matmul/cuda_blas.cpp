#include "core/ops/matmul/blas.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "core/device/cuda/check.h"
#include "core/device/cuda_device.h"

namespace lamina::ops::cuda {
namespace {

// What cuBLAS recommends for sm_90; given by us because its own would be allocated at the first product of a shape.
constexpr int64_t workspace_bytes = int64_t{32} << 20;

struct Blas {
  explicit Blas(int device_index) : device(device_index) {}
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;
  ~Blas() {
    if (handle != nullptr) cublasDestroy(handle);
    if (workspace != nullptr) lamina::cuda::deallocate(device, workspace);
  }

  int device;
  cublasHandle_t handle = nullptr;
  void* workspace = nullptr;
};

// Handles of libraries that are bound to one stream; each is null until somebody asks for it.
struct Libraries {
  std::unique_ptr<Blas> blas;
};

Libraries& libraries_of(Stream& stream) {
  StreamState* const state = stream.state();
  LAMINA_CHECK(state != nullptr, "a library for GPUs on the CPU's stream");
  if (!state->libraries) state->libraries = std::make_shared<Libraries>();
  return *static_cast<Libraries*>(state->libraries.get());
}

std::unique_ptr<Blas> make_blas(Stream& stream) {
  auto made = std::make_unique<Blas>(stream.device().index);
  lamina::cuda::check(cudaSetDevice(made->device), "the device of cuBLAS");
  check(cublasCreate(&made->handle), "a handle of cuBLAS");
  check(cublasSetStream(made->handle, static_cast<cudaStream_t>(stream.state()->handle())), "the stream of cuBLAS");
  made->workspace = lamina::cuda::allocate(made->device, workspace_bytes, "workspace of cuBLAS");
  check(cublasSetWorkspace(made->handle, made->workspace, static_cast<size_t>(workspace_bytes)),
        "the workspace of cuBLAS");
  // Parts of a sum over K that several blocks share would otherwise be rounded to bf16 before they are added.
  constexpr int mode = CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
  check(cublasSetMathMode(made->handle, static_cast<cublasMath_t>(mode)), "the precision of cuBLAS");
  return made;
}

// A row-major matrix is the transposed column-major one, with the row stride as leading dimension.
struct Operand {
  cublasOperation_t operation;
  int leading;
};

constexpr int64_t largest_int = std::numeric_limits<int>::max();

// Where there is one line its stride means nothing, and may be less than cuBLAS asks for.
int64_t leading_of(int64_t num_lines, int64_t length, int64_t stride) {
  return std::max<int64_t>(1, num_lines > 1 ? stride : length);
}

bool has_rows(const TensorView& m) {
  return (m.stride(1) == 1 || m.size(1) <= 1) && (m.size(0) <= 1 || m.stride(0) >= m.size(1));
}

int64_t leading_dimension(const TensorView& m) {
  return has_rows(m) ? leading_of(m.size(0), m.size(1), m.stride(0)) : leading_of(m.size(1), m.size(0), m.stride(1));
}

Operand operand_of(const TensorView& m) {
  return {has_rows(m) ? CUBLAS_OP_N : CUBLAS_OP_T, static_cast<int>(leading_dimension(m))};
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

}  // namespace

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw Error("{}: {}", what, cublasGetStatusString(status));
}

cublasHandle_t blas(Stream& stream) {
  Libraries& libraries = libraries_of(stream);
  if (!libraries.blas) libraries.blas = make_blas(stream);
  return libraries.blas->handle;
}

const char* product_refuses(const TensorView& a, const TensorView& b, const TensorView& c) {
  if (a.dtype == DType::f64) return "fp64 runs on the CPU";
  for (const TensorView* m : {&a, &b, &c}) {
    if (m->size(0) > largest_int || m->size(1) > largest_int || leading_dimension(*m) > largest_int)
      return "an extent or stride is above 2^31";
  }
  return nullptr;
}

void multiply(Stream& stream, const Product& product) {
  const TensorView &a = product.a, &b = product.b, &c = product.c;
  const Operand left = operand_of(a), right = operand_of(b), out = operand_of(c);
  const auto m = static_cast<int>(c.size(0)), n = static_cast<int>(c.size(1)), k = static_cast<int>(a.size(1));
  LAMINA_CHECK(m > 0 && n > 0 && k > 0 && product.count > 0, "{} x {} into {}", a.to_string(), b.to_string(),
               c.to_string());
  LAMINA_CHECK(out.operation == CUBLAS_OP_N, "c {} with stride {}", c.to_string(), c.stride(1));
  const cublasComputeType_t compute = a.dtype == DType::bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC;
  const cublasHandle_t handle = blas(stream);
  // c = a b row by row is c^T = b^T a^T column by column.
  if (product.count == 1) {
    check(cublasGemmEx(handle, right.operation, left.operation, n, m, k, &product.alpha, b.data, type_of(b.dtype),
                       right.leading, a.data, type_of(a.dtype), left.leading, &product.beta, c.data, type_of(c.dtype),
                       out.leading, compute, CUBLAS_GEMM_DEFAULT),
          "a matrix product");
    return;
  }
  check(cublasGemmStridedBatchedEx(handle, right.operation, left.operation, n, m, k, &product.alpha, b.data,
                                   type_of(b.dtype), right.leading, product.b_step, a.data, type_of(a.dtype),
                                   left.leading, product.a_step, &product.beta, c.data, type_of(c.dtype), out.leading,
                                   product.c_step, static_cast<int>(product.count), compute, CUBLAS_GEMM_DEFAULT),
        "a batch of matrix products");
}

}  // namespace lamina::ops::cuda
