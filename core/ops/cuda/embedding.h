#pragma once

#include "core/ops/embedding.h"

namespace lamina::ops::cuda {

const char* embedding_forward_refuses(const EmbeddingForward& args);
void embedding_forward(OpContext& ctx, const EmbeddingForward& args);

const char* embedding_backward_refuses(const EmbeddingBackward& args);
void embedding_backward(OpContext& ctx, const EmbeddingBackward& args);

}  // namespace lamina::ops::cuda
