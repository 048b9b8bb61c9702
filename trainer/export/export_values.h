// Values of one tensor on their way between a checkpoint and an exported file.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "trainer/export/safetensors.h"

namespace lamina {

// Elements of dtype `from` become elements of `to` (bf16, f32, f64), each rounded once, to nearest.
void convert_values(std::vector<char>& values, DType from, DType to);

// Of a model: names, dtypes, shapes and bytes of its tensors, whatever the order in which they are added.
class ModelHash {
 public:
  void add(const SafetensorsEntry& entry, std::span<const char> bytes);
  uint64_t digest() const;

 private:
  std::map<std::string, uint64_t> tensors_;
};

}  // namespace lamina
