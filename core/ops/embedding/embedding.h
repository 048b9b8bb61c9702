// Rows of a table by token id.
#pragma once

#include "core/ops/op.h"

namespace lamina::ops {

struct EmbeddingForward {
  TensorView tokens;  // [tokens] i32, each in [0, vocab); LAMINA_CHECK otherwise
  TensorView table;   // [vocab, dim]
  TensorView y;       // [tokens, dim]
};
void embedding_forward(OpContext& ctx, const EmbeddingForward& args);

// dtable[token] += dy, in token order whatever the number of threads: bitwise reproducible.
struct EmbeddingBackward {
  TensorView tokens;  // [tokens] i32
  TensorView dy;      // [tokens, dim] compute dtype or acc
  TensorView dtable;  // [vocab, dim] acc; accumulates
};
void embedding_backward(OpContext& ctx, const EmbeddingBackward& args);

}  // namespace lamina::ops
