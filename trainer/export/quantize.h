// Weights rounded as a format of few bits would round them, to see what that costs; they are written in the model's own dtype. Round to
// nearest, symmetric, one scale per group of input channels of each output channel; no data is looked at, no activation is rounded.
//   scale = max |w| / q_max,  w' = scale * clamp(round_half_even(w / scale), -q_max, q_max),  q_max = 2^(bits - 1) - 1
// The scale is a float32. So |w - w'| <= scale / 2 (but for the rounding of the scale), before w' is rounded to the dtype that is written.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "model/parameters.h"

namespace lamina {

struct Quantization {
  int bits = 8;  // 8 or 4
  int64_t group_size = 128;
  bool depth_queries = false;  // those of Attention Residuals too
};

// Matrices of attention, MLPs and experts. Kept are embedding, head, norms, convolutions, routers, and the gates of Kimi Delta Attention
// (f_a, f_b, g_a, g_b, b_proj, A_log, dt_bias).
bool is_quantized(const model::ParameterSpec& spec, const Quantization& how);
std::vector<std::string> quantized_tensors(const ModelConfig& config, const Quantization& how);
// The same without the numbers of layers and experts: model.layers.*.self_attn.o_proj.weight.
std::vector<std::string> quantized_kinds(const ModelConfig& config, const Quantization& how);
// "int4, to nearest, a scale per 128 input channels"
std::string describe(const Quantization& how);

// In place; rows of `columns` values, the last group of a row may be shorter. Error naming `name` for a value that is not finite.
void quantize_values(std::span<double> values, int64_t columns, const Quantization& how, const std::string& name);

}  // namespace lamina
