#include "core/tensor/view.h"

#include <utility>

namespace lamina {

TensorView::TensorView(void* data_in, DType dtype_in, const Shape& shape_in, Device device_in)
    : data(data_in), dtype(dtype_in), shape(shape_in), strides(shape_in), device(device_in) {
  int64_t step = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = step;
    step *= shape[axis];
  }
}

bool TensorView::is_contiguous() const {
  int64_t step = 1;
  for (int axis = rank() - 1; axis >= 0; --axis) {
    if (shape[axis] != 1 && strides[axis] != step) return false;
    step *= shape[axis];
  }
  return true;
}

TensorView TensorView::reshaped(const Shape& new_shape) const {
  LAMINA_CHECK(is_contiguous() && new_shape.num_elements() == num_elements(), "{} as {}", to_string(),
               new_shape.to_string());
  return {data, dtype, new_shape, device};
}

TensorView TensorView::slice(int axis, int64_t begin, int64_t end) const {
  LAMINA_CHECK(begin >= 0 && begin <= end && end <= size(axis), "[{}, {}) of axis {} of {}", begin, end, axis,
               to_string());
  TensorView out = *this;
  out.data = static_cast<char*>(data) + begin * strides[axis] * size_of(dtype);
  out.shape[axis] = end - begin;
  return out;
}

TensorView TensorView::select(int axis, int64_t index) const {
  const int fixed = axis < 0 ? axis + rank() : axis;
  const TensorView row = slice(fixed, index, index + 1);
  TensorView out = row;
  out.shape = Shape();
  out.strides = Shape();
  for (int i = 0; i < rank(); ++i) {
    if (i == fixed) continue;
    out.shape.push_back(row.shape[i]);
    out.strides.push_back(row.strides[i]);
  }
  return out;
}

TensorView TensorView::transposed(int axis_a, int axis_b) const {
  TensorView out = *this;
  std::swap(out.shape[axis_a], out.shape[axis_b]);
  std::swap(out.strides[axis_a], out.strides[axis_b]);
  return out;
}

std::string TensorView::to_string() const {
  return fmt::format("{} {}", name_of(dtype), shape.to_string());
}

bool same_layout(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape == b.shape;
}

}  // namespace lamina
