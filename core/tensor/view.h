// TensorView borrows: a pointer, dtype, shape, strides (in elements) and device. It never outlives the step.
#pragma once

#include <cstdint>
#include <string>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/base/shape.h"
#include "core/device/device.h"

namespace lamina {

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;
  Shape strides;  // elements
  Device device;

  TensorView() = default;
  // Contiguous, last axis fastest.
  TensorView(void* data, DType dtype, const Shape& shape, Device device = {});

  bool empty() const { return data == nullptr; }
  explicit operator bool() const { return data != nullptr; }
  int rank() const { return shape.rank(); }
  int64_t size(int axis) const { return shape[axis]; }
  int64_t stride(int axis) const { return strides[axis]; }
  int64_t num_elements() const { return shape.num_elements(); }
  int64_t num_bytes() const { return num_elements() * size_of(dtype); }
  bool is_contiguous() const;

  template <class T>
  T* as() const {
    LAMINA_CHECK(dtype == dtype_of<T>::value, "{} read as {}", name_of(dtype), name_of(dtype_of<T>::value));
    return static_cast<T*>(data);
  }

  TensorView reshaped(const Shape& new_shape) const;              // contiguous views only, same count
  TensorView slice(int axis, int64_t begin, int64_t end) const;   // same rank
  TensorView select(int axis, int64_t index) const;               // one rank less
  TensorView transposed(int axis_a = -2, int axis_b = -1) const;  // swaps extents and strides; moves no data

  std::string to_string() const;  // "bf16 [4, 512]"
};

// Same shape and dtype, whatever the strides.
bool same_layout(const TensorView& a, const TensorView& b);

}  // namespace lamina
