// Views into buffers that hold many tensors one after the other.
#pragma once

#include <cstdint>

#include "core/device/buffer.h"
#include "core/tensor/view.h"

namespace lamina {

// [count], from the buffer's element `offset` of that dtype on.
inline TensorView elements_of(const Buffer& buffer, DType dtype, int64_t offset, int64_t count) {
  return {static_cast<char*>(buffer.data()) + offset * size_of(dtype), dtype, {count}, buffer.device()};
}

}  // namespace lamina
