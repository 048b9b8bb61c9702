#pragma once

#include "core/ops/embedding.h"

namespace lamina::ops::ref {

void embedding_forward(OpContext& ctx, const EmbeddingForward& args);
void embedding_backward(OpContext& ctx, const EmbeddingBackward& args);

}  // namespace lamina::ops::ref
