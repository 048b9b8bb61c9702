// `config.json` of an exported model: the keys of the released Kimi Linear, and Lamina's own for what that model does not have
// (residual, attn_res_block_size, kv_a_layernorm_eps, linear_attn_config.gate_lower_bound, aux_loss_alpha, tokenizer_hash,
// tied_head_written_out). It says `KimiLinearForCausalLM` only where transformers' built-in kimi_linear computes the model;
// otherwise `LaminaForCausalLM` with `model_type: lamina`, which other programs refuse instead of taking it for what it isn't.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/base/dtype.h"
#include "trainer/identity.h"

namespace lamina {

struct HfModel {
  ModelConfig model;
  int64_t model_max_length = 0;  // here: the sequence length of training
  DType dtype = DType::bf16;     // of the matrices
  TokenizerIdentity tokenizer;
  // The matrix that a tied model has once is there twice, as embedding and as head: kimi_linear has no tied heads.
  bool tied_head_written_out = false;
};

// Why transformers' kimi_linear would compute something else, "key: value: reason" each; empty: it computes this model.
std::vector<std::string> reasons_against_kimi_linear(const ModelConfig& c);

std::string to_hf_config(const HfModel& hf);

// Keys that Lamina's architecture fixes (activation, router) must have its values; those that say nothing about the model, such as
// use_cache, are passed over. Error naming `file` and the key.
HfModel parse_hf_config(const std::string& text, const std::string& file);

}  // namespace lamina
