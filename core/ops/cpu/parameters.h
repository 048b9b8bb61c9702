// Parameters as fp32 vectors for the kernels, and per-thread partial sums of their gradients.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/op.h"

namespace lamina::ops::cpu {

// Rows of parameters are padded with zeros to a multiple of the widest vector, so that kernels load them whole.
inline int64_t padded(int64_t dim) {
  return (dim + 15) / 16 * 16;
}

// Fewer elements than this per thread don't pay for waking it.
constexpr int64_t elements_per_thread = 16384;
inline int64_t row_grain(int64_t dim) {
  return 1 + elements_per_thread / std::max<int64_t>(1, dim);
}

inline const char* refuses_f64(const TensorView& operand) {
  return operand.dtype == DType::f64 ? "vector kernels are for bf16 and fp32" : nullptr;
}

inline float element_of(const TensorView& vector, int64_t i) {
  return vector.dtype == DType::bf16 ? static_cast<float>(static_cast<const bf16*>(vector.data)[i])
                                     : static_cast<const float*>(vector.data)[i];
}

inline float* zeros(OpContext& ctx, int64_t rows, int64_t dim) {
  float* out = ctx.scratch.take(DType::f32, {rows, padded(dim)}).as<float>();
  std::fill_n(out, rows * padded(dim), 0.0f);
  return out;
}

inline const float* as_floats(OpContext& ctx, const TensorView& vector) {
  float* out = zeros(ctx, 1, vector.size(0));
  for (int64_t i = 0; i < vector.size(0); ++i) out[i] = element_of(vector, i);
  return out;
}

// Sums over tokens of `num_vectors` vectors, one set per thread, added in thread order: reproducible for a given number
// of threads.
class PartialSums {
 public:
  PartialSums(OpContext& ctx, int threads, int64_t num_vectors, int64_t dim)
      : threads_(threads),
        num_vectors_(num_vectors),
        stride_(padded(dim)),
        data_(zeros(ctx, threads * num_vectors, dim)) {}

  float* of(int thread) const { return data_ + thread * num_vectors_ * stride_; }
  float total(int64_t vector, int64_t i) const {
    float sum = 0;
    for (int thread = 0; thread < threads_; ++thread) sum += of(thread)[vector * stride_ + i];
    return sum;
  }

 private:
  int threads_;
  int64_t num_vectors_, stride_;
  float* data_;
};

}  // namespace lamina::ops::cpu
