// Parameters as fp32 vectors for the kernels, and partial sums of their gradients.
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

// Rows cut by shape alone: sums over the parts, added in their order, don't depend on the number of threads. To clear and add the
// sums of a part takes as long as a row or less, so parts have many.
struct RowParts {
  static constexpr int64_t most = 64, fewest_rows = 64;
  int64_t rows, rows_per_part, count;

  // `row_size`: elements of work in a row.
  RowParts(int64_t num_rows, int64_t row_size)
      : rows(num_rows),
        rows_per_part(std::max({row_grain(row_size), fewest_rows, (num_rows + most - 1) / most})),
        count((num_rows + rows_per_part - 1) / rows_per_part) {}

  int64_t begin(int64_t part) const { return std::min(part * rows_per_part, rows); }

  // body(part, begin, end)
  template <class Body>
  void for_each(Body&& body) const {
    lamina::cpu::parallel_for(count, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) body(part, begin(part), begin(part + 1));
    });
  }
};

// Sums over tokens of `num_vectors` vectors, one set per part.
class PartialSums {
 public:
  PartialSums(OpContext& ctx, const RowParts& parts, int64_t num_vectors, int64_t dim)
      : count_(std::max<int64_t>(1, parts.count)),
        size_(num_vectors * padded(dim)),
        data_(zeros(ctx, count_ * num_vectors, dim)) {}

  float* of(int64_t part) const { return data_ + part * size_; }
  // The totals, once every part is there; vector v begins at v * padded(dim).
  const float* add_up() const {
    for (int64_t part = 1; part < count_; ++part) {
      const float* sums = of(part);
      for (int64_t i = 0; i < size_; ++i) data_[i] += sums[i];
    }
    return data_;
  }

 private:
  int64_t count_, size_;
  float* data_;
};

}  // namespace lamina::ops::cpu
