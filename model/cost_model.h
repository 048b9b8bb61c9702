// Counts from the configuration alone.
#pragma once

#include <cstdint>

#include "configs/schema/config.h"

namespace lamina::model {

// Floating-point operations of training one token (2 per multiply-accumulate, backward twice forward, recomputation not
// counted):
//   F(T) = 6 N_mm + 3 layers heads T (d_qk + d_v)
// N_mm: elements of all matrices that a token is multiplied with (the head included, the embedding look-up not); the
// second term is causal attention, T / 2 keys on average.
struct FlopsPerToken {
  double matrices = 0;  // 6 N_mm
  double attention = 0;
  double total() const { return matrices + attention; }
};
FlopsPerToken training_flops_per_token(const ModelConfig& config, int64_t seq_len);

}  // namespace lamina::model
