// What core/ops/embedding chooses from: the reference, and those that may refuse.
#pragma once

#include "core/ops/embedding/embedding.h"

namespace lamina::ops {

namespace ref {
void embedding_forward(OpContext& ctx, const EmbeddingForward& args);
void embedding_backward(OpContext& ctx, const EmbeddingBackward& args);
}  // namespace ref

namespace cpu {
const char* embedding_forward_refuses(const EmbeddingForward& args);
void embedding_forward(OpContext& ctx, const EmbeddingForward& args);
const char* embedding_backward_refuses(const EmbeddingBackward& args);
void embedding_backward(OpContext& ctx, const EmbeddingBackward& args);
}  // namespace cpu

namespace cuda {
const char* embedding_forward_refuses(const EmbeddingForward& args);
void embedding_forward(OpContext& ctx, const EmbeddingForward& args);

const char* embedding_backward_refuses(const EmbeddingBackward& args);
void embedding_backward(OpContext& ctx, const EmbeddingBackward& args);
}  // namespace cuda

}  // namespace lamina::ops
