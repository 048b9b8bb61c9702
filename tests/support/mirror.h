// Copies of an operation's operands in float64: the reference run on them is what the operation must return, up to the
// rounding of its own dtype. A view is copied once, so operands that alias stay aliases.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "tests/support/op_test.h"

namespace lamina::test {

class Mirror {
 public:
  TensorView operator()(const TensorView& view) {
    if (view.empty()) return {};
    auto& copy = copies_[view.data];
    if (!copy) copy = std::make_unique<Tensor>(to(DType::f64, view));
    return *copy;
  }
  std::vector<TensorView> operator()(std::span<const TensorView> views) {
    std::vector<TensorView> out;
    for (const TensorView& view : views) out.push_back((*this)(view));
    return out;
  }

  // Largest error of `got` against its mirror, over the mirror's largest value or `scale` if that is larger: the size of
  // the terms, where they may cancel altogether.
  double error(const TensorView& got, double scale = 0.0) {
    const TensorView want = (*this)(got);
    double largest = 1e-30;
    for (const double value : values(want)) largest = std::max(largest, std::abs(value));
    return relative_error(got, want) * largest / std::max(largest, scale);
  }

 private:
  std::map<const void*, std::unique_ptr<Tensor>> copies_;
};

// The error that a result may have: its own rounding, and that of a sum of `depth` terms in the accumulation dtype.
inline double tolerance(DType dtype, int64_t depth) {
  const double sum = epsilon_of(accumulation_dtype(dtype)) * (8.0 + 2.0 * std::sqrt(static_cast<double>(depth)));
  return sum + (dtype == DType::bf16 ? epsilon_of(dtype) * 1.01 : 0.0);
}

// The bound for a view; `scale` is the size of what the result is a sum of, where that may cancel altogether.
inline void expect_mirrored(Mirror& mirror, const TensorView& view, const char* what, int64_t depth,
                            double scale = 0.0) {
  EXPECT_LE(mirror.error(view, scale), tolerance(view.dtype, depth)) << what << " " << view.to_string();
}
#define EXPECT_MIRRORED(mirror, view, ...) ::lamina::test::expect_mirrored(mirror, view, #view, __VA_ARGS__)

}  // namespace lamina::test
