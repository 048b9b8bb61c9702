// What tests of operations share: a context, tensors that own their bytes, random contents, comparison in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "core/base/rng.h"
#include "core/ops/op.h"
#include "core/tensor/host_copy.h"

namespace lamina::test {

struct TestContext {
  Stream stream;
  Arena scratch{Device{}, nullptr, "test"};
  ops::RefusalLog refusals;
  ops::OpContext fastest{stream, scratch, refusals, ops::Backend::fastest};
  ops::OpContext reference{stream, scratch, refusals, ops::Backend::reference};
  ops::OpContext through_fp32{stream, scratch, refusals, ops::Backend::fastest, ops::Bf16Products::through_fp32()};
};

inline double element(const TensorView& view, int64_t offset) {
  return element_of(view, offset);
}

// The memory offset of the n-th element in row-major order, whatever the strides.
inline int64_t offset_of(const TensorView& view, int64_t n) {
  int64_t offset = 0;
  for (int axis = view.rank() - 1; axis >= 0; --axis) {
    offset += n % view.size(axis) * view.stride(axis);
    n /= view.size(axis);
  }
  return offset;
}

inline double get(const TensorView& view, int64_t n) {
  return element(view, offset_of(view, n));
}
inline void set(const TensorView& view, int64_t n, double value) {
  set_element(view, offset_of(view, n), value);
}

inline std::vector<double> values(const TensorView& view) {
  std::vector<double> out;
  for (int64_t n = 0; n < view.num_elements(); ++n) out.push_back(get(view, n));
  return out;
}

inline void fill(const TensorView& view, double value) {
  for (int64_t n = 0; n < view.num_elements(); ++n) set(view, n, value);
}
inline void poison(const TensorView& view) {
  fill(view, std::numeric_limits<double>::quiet_NaN());
}
inline void fill_normal(const TensorView& view, uint64_t stream, double scale = 1.0) {
  const CounterRng rng(20240817, stream);
  for (int64_t n = 0; n < view.num_elements(); ++n) set(view, n, scale * rng.normal(static_cast<uint64_t>(n)));
}

// A contiguous tensor and its bytes, between two guards that nothing may write. Copies are refused: the view would point
// into the other's bytes.
class Tensor {
 public:
  Tensor(DType dtype, const Shape& shape)
      : bytes_(shape.num_elements() * size_of(dtype) + 2 * guard, Device{}, nullptr, "test") {
    view_ = TensorView(byte(guard), dtype, shape);
    std::fill_n(byte(0), guard, mark);
    std::fill_n(byte(bytes_.num_bytes() - guard), guard, mark);
  }
  Tensor(Tensor&&) noexcept = default;
  Tensor& operator=(Tensor&&) = delete;
  ~Tensor() {
    if (bytes_.data() == nullptr) return;
    EXPECT_EQ(std::count(byte(0), byte(guard), mark), guard) << "written before " << view_.to_string();
    EXPECT_EQ(std::count(byte(bytes_.num_bytes() - guard), byte(bytes_.num_bytes()), mark), guard)
        << "written after " << view_.to_string();
  }
  operator const TensorView&() const { return view_; }
  const TensorView& view() const { return view_; }
  const TensorView* operator->() const { return &view_; }

 private:
  static constexpr int64_t guard = 64;
  static constexpr char mark = 0x5a;
  char* byte(int64_t offset) const { return static_cast<char*>(bytes_.data()) + offset; }

  Buffer bytes_;
  TensorView view_;
};

inline Tensor normal(DType dtype, const Shape& shape, uint64_t stream, double scale = 1.0) {
  Tensor out(dtype, shape);
  fill_normal(out, stream, scale);
  return out;
}
inline Tensor poisoned(DType dtype, const Shape& shape) {
  Tensor out(dtype, shape);
  poison(out);
  return out;
}
inline Tensor zeros(DType dtype, const Shape& shape) {
  return Tensor(dtype, shape);
}

// A contiguous copy in another dtype.
inline Tensor to(DType dtype, const TensorView& x) {
  Tensor out(dtype, x.shape);
  for (int64_t n = 0; n < x.num_elements(); ++n) set(out, n, get(x, n));
  return out;
}

// The largest |got - want| over the largest |want| (or over 1e-30), NaN when any value is NaN.
inline double relative_error(const TensorView& got, const TensorView& want) {
  EXPECT_EQ(got.shape, want.shape);
  double difference = 0, size = 1e-30;
  for (int64_t n = 0; n < want.num_elements(); ++n) {
    const double d = std::abs(get(got, n) - get(want, n));
    if (std::isnan(d)) return d;
    difference = std::max(difference, d);
    size = std::max(size, std::abs(get(want, n)));
  }
  return difference / size;
}

inline double epsilon_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 0x1p-8;
    case DType::f32:
      return 0x1p-23;
    default:
      return 0x1p-52;
  }
}

}  // namespace lamina::test

namespace lamina {
inline void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.to_string();
}
}  // namespace lamina
