// `config.json` of an exported model: the keys of the released Kimi Linear, and Lamina's own for what that model does not have
// (residual, attn_res_block_size, num_residual_streams, kv_a_layernorm_eps, linear_attn_config.gate_lower_bound, aux_loss_alpha,
// tokenizer_hash, tied_head_written_out, document_end_token_id). It says `KimiLinearForCausalLM` only where transformers' built-in
// kimi_linear computes the model; otherwise `LaminaForCausalLM` with `model_type: lamina`, whose code is in the folder (`auto_map`):
// other programs refuse it, or run that code when told to, and never take it for what it isn't.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "core/base/dtype.h"
#include "trainer/record/identity.h"

namespace lamina {

struct HfModel {
  ModelConfig model;
  int64_t model_max_length = 0;  // here: the sequence length of training
  DType dtype = DType::bf16;     // of the matrices
  TokenizerIdentity tokenizer;
  // The matrix that a tied model has once is there twice, as embedding and as head: kimi_linear has no tied heads.
  bool tied_head_written_out = false;
  // Trained with data.document_mask: the token after which attention, states and convolutions begin anew.
  std::optional<int64_t> document_end;
};

// Of the file with the code of Lamina's own architecture, in the folder.
inline constexpr const char* modeling_file = "modeling_lamina.py";

// Why transformers' kimi_linear would compute something else, "key: value: reason" each; empty: it computes this model.
std::vector<std::string> reasons_against_kimi_linear(const HfModel& hf);

std::string to_hf_config(const HfModel& hf);

// generation_config.json: where generation begins and ends.
std::string to_generation_config(const TokenIds& ids);

// Keys that Lamina's architecture fixes (activation, router) must have its values; those that say nothing about the model, such as
// use_cache, are passed over. Error naming `file` and the key.
HfModel parse_hf_config(const std::string& text, const std::string& file);

}  // namespace lamina
