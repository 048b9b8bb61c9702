// Under which names, and in which part of those tensors, another program may store a tensor of a model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/base/shape.h"

namespace lamina {

struct TensorSource {
  std::string tensor;
  Shape shape;        // of that whole tensor
  int64_t begin = 0;  // the element of it that the wanted tensor begins with, contiguous from there
};

// Of the model's tensor `name` with `shape`; its own name first. The others are those of transformers' kimi_linear (5.24.0), which its
// save_pretrained writes with save_original_format=False and its state_dict() has: experts stacked, gate and up of an expert one matrix,
// the three convolutions of a layer one, the forget gate a module. With the original format save_pretrained writes the released names,
// but for the dense MLPs, which it calls block_sparse_moe like those with experts.
std::vector<TensorSource> sources_of(const std::string& name, const Shape& shape, const ModelConfig& model);

}  // namespace lamina
