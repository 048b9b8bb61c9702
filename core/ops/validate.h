// Checks that every operation makes once, before any implementation runs. A failure names the operand, what it is and
// what it must be.
#pragma once

#include <string_view>

#include "core/base/error.h"
#include "core/tensor/view.h"

namespace lamina::ops {

// Whether a check may read the values: those on a GPU were checked by whoever brought them there.
inline bool is_readable(const TensorView& v) {
  return v.device.kind == DeviceKind::cpu;
}

inline void expect_compute_dtype(const TensorView& v, std::string_view what) {
  LAMINA_CHECK(v.dtype != DType::i32, "{} is {}, expected bf16, fp32 or fp64", what, v.to_string());
}

// The operand's dtype is `compute`, or the accumulation dtype of it.
inline void expect_compute_or_acc(const TensorView& v, std::string_view what, DType compute) {
  LAMINA_CHECK(v.dtype == compute || v.dtype == accumulation_dtype(compute), "{} is {}, expected {} or {}", what,
               v.to_string(), name_of(compute), name_of(accumulation_dtype(compute)));
}

inline void expect_dtype(const TensorView& v, std::string_view what, DType dtype) {
  LAMINA_CHECK(v.dtype == dtype, "{} is {}, expected {}", what, v.to_string(), name_of(dtype));
}

// Unit stride on the last axis; any other strides.
inline void expect_shape(const TensorView& v, std::string_view what, const Shape& shape) {
  LAMINA_CHECK(v.shape == shape, "{} is {}, expected {}", what, v.to_string(), shape.to_string());
  LAMINA_CHECK(!v.empty() || shape.num_elements() == 0, "{} is missing", what);
  LAMINA_CHECK(shape[-1] <= 1 || v.stride(-1) == 1, "{} has stride {} on its last axis", what, v.stride(-1));
}

inline void expect(const TensorView& v, std::string_view what, DType dtype, const Shape& shape) {
  expect_dtype(v, what, dtype);
  expect_shape(v, what, shape);
}

// A weight or gradient that may be kept in the compute dtype or in acc.
inline void expect_either(const TensorView& v, std::string_view what, DType compute, const Shape& shape) {
  expect_compute_or_acc(v, what, compute);
  expect_shape(v, what, shape);
}

inline void expect_contiguous(const TensorView& v, std::string_view what) {
  LAMINA_CHECK(v.is_contiguous(), "{} ({}) is not contiguous", what, v.to_string());
}

}  // namespace lamina::ops
