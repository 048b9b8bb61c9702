// `config.json` of an exported model: the keys of the released Kimi Linear, and Lamina's own for what that model does not have
// (residual, attn_res_block_size, kv_a_layernorm_eps, linear_attn_config.gate_lower_bound, aux_loss_alpha).
#pragma once

#include <string>

#include "configs/schema/config.h"
#include "core/base/dtype.h"

namespace lamina {

struct HfModel {
  ModelConfig model;
  int64_t model_max_length = 0;  // here: the sequence length of training
  DType dtype = DType::bf16;     // of the matrices
};

std::string to_hf_config(const HfModel& hf);

// Keys that Lamina's architecture fixes (activation, router) must have its values; those that say nothing about the model, such as
// a tokenizer's ids, are passed over. Error naming `file` and the key.
HfModel parse_hf_config(const std::string& text, const std::string& file);

}  // namespace lamina
