// What every product by oneDNN needs.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>

namespace lamina::ops::cpu {

// The processor as oneDNN sees it. Shared by all threads; immutable after construction.
inline const dnnl::engine& onednn_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Instruction sets are sets of bits, each including what it builds upon.
inline bool onednn_has(dnnl::cpu_isa isa) {
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & static_cast<int>(isa)) == static_cast<int>(isa);
}

}  // namespace lamina::ops::cpu
