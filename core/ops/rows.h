// Rows of a tensor as vectors of the accumulation type, whatever the dtype in memory: the reference implementations are
// written in these, so that rounding happens where a row is stored and nowhere else.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/ops/op.h"

namespace lamina::ops::ref {

// Calls body(T{}) with the C++ type of a floating-point dtype.
template <class Body>
void visit_float(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::bf16:
      body(bf16{});
      return;
    case DType::f32:
      body(float{});
      return;
    case DType::f64:
      body(double{});
      return;
    case DType::i32:
      break;
  }
  LAMINA_CHECK(false, "{} is not a floating-point dtype", name_of(dtype));
}

// Calls body(A{}) with the accumulation type of a compute dtype.
template <class Body>
void visit_acc(DType compute, Body&& body) {
  if (accumulation_dtype(compute) == DType::f64) {
    body(double{});
  } else {
    body(float{});
  }
}

// One rounding, to nearest, ties to even.
template <class To, class From>
To round_to(From value) {
  return static_cast<To>(value);
}
template <>
inline bf16 round_to<bf16, double>(double value) {
  // Two roundings to nearest can differ from one. Rounding to odd in between keeps what the second needs to know.
  float nearest = static_cast<float>(value);
  const double back = static_cast<double>(nearest);
  uint32_t bits = std::bit_cast<uint32_t>(nearest);
  if (back != value && value == value && (bits & 1u) == 0u) {
    const bool grew = (back > value) == (value > 0.0);
    bits += grew ? ~0u : 1u;
    nearest = std::bit_cast<float>(bits);
  }
  return bf16(nearest);
}

template <class A>
using Row = std::vector<A>;

template <class A>
Row<A> load_row(const TensorView& matrix, int64_t row) {
  const int64_t dim = matrix.size(1);
  Row<A> out(static_cast<size_t>(dim));
  visit_float(matrix.dtype, [&]<class T>(T) {
    const T* from = matrix.as<T>() + row * matrix.stride(0);
    for (int64_t i = 0; i < dim; ++i) out[static_cast<size_t>(i)] = static_cast<A>(from[i]);
  });
  return out;
}

template <class A>
void store_row(const TensorView& matrix, int64_t row, const Row<A>& values, GradMode mode = GradMode::overwrite) {
  visit_float(matrix.dtype, [&]<class T>(T) {
    T* to = matrix.as<T>() + row * matrix.stride(0);
    for (size_t i = 0; i < values.size(); ++i) {
      to[i] = round_to<T>(mode == GradMode::accumulate ? static_cast<A>(to[i]) + values[i] : values[i]);
    }
  });
}

template <class A>
Row<A> load_vector(const TensorView& vector) {
  TensorView row = vector;
  row.shape = {1, vector.size(0)};
  row.strides = {vector.size(0), 1};
  return load_row<A>(row, 0);
}

template <class A>
A sigmoid(A x) {
  return A(1) / (A(1) + std::exp(-x));
}

template <class A>
A dot(const Row<A>& a, const Row<A>& b) {
  A sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace lamina::ops::ref
