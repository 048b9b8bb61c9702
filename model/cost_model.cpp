#include "model/cost_model.h"

#include "model/parameters.h"

namespace lamina::model {

FlopsPerToken training_flops_per_token(const ModelConfig& c, int64_t seq_len) {
  int64_t matmul_elements = 0;
  for (const ParameterSpec& spec : parameter_specs(c))
    if (spec.is_matrix) matmul_elements += spec.shape.num_elements();
  // A tied embedding is multiplied once, as the head; an untied one only looked up.
  if (!c.tie_word_embeddings) matmul_elements -= c.vocab_size * c.hidden_size;
  FlopsPerToken flops;
  flops.matrices = 6.0 * static_cast<double>(matmul_elements);
  flops.attention = 3.0 * static_cast<double>(c.num_hidden_layers * c.num_attention_heads * seq_len *
                                              (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim));
  return flops;
}

}  // namespace lamina::model
