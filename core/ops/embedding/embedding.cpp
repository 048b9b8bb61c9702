#include "core/ops/embedding/embedding.h"

#include "core/ops/embedding/implementations.h"
#include "core/ops/gpu/register.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_tokens(const TensorView& tokens, int64_t vocab) {
  LAMINA_CHECK(tokens.rank() == 1, "tokens is {}", tokens.to_string());
  expect(tokens, "tokens", DType::i32, tokens.shape);
  if (!is_readable(tokens)) return;
  for (int64_t t = 0; t < tokens.size(0); ++t) {
    const int32_t token = tokens.as<int32_t>()[t];
    LAMINA_CHECK(token >= 0 && token < vocab, "token {} at position {}, vocabulary {}", token, t, vocab);
  }
}

}  // namespace

void embedding_forward(OpContext& ctx, const EmbeddingForward& args) {
  static constexpr Implementation<EmbeddingForward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(embedding_forward)  //
      {"cpu", cpu::embedding_forward_refuses, cpu::embedding_forward},
      {"ref", nullptr, ref::embedding_forward}};
  LAMINA_CHECK(args.table.rank() == 2, "table is {}", args.table.to_string());
  expect_compute_dtype(args.table, "table");
  expect_shape(args.table, "table", args.table.shape);
  expect_tokens(args.tokens, args.table.size(0));
  expect(args.y, "y", args.table.dtype, {args.tokens.size(0), args.table.size(1)});
  dispatch<EmbeddingForward>(ctx, "embedding_forward", list, args);
}

void embedding_backward(OpContext& ctx, const EmbeddingBackward& args) {
  static constexpr Implementation<EmbeddingBackward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(embedding_backward)  //
      {"cpu", cpu::embedding_backward_refuses, cpu::embedding_backward},
      {"ref", nullptr, ref::embedding_backward}};
  LAMINA_CHECK(args.dtable.rank() == 2, "dtable is {}", args.dtable.to_string());
  expect_compute_dtype(args.dy, "dy");
  expect(args.dtable, "dtable", accumulation_dtype(args.dy.dtype), args.dtable.shape);
  expect_tokens(args.tokens, args.dtable.size(0));
  expect_shape(args.dy, "dy", {args.tokens.size(0), args.dtable.size(1)});
  dispatch<EmbeddingBackward>(ctx, "embedding_backward", list, args);
}

}  // namespace lamina::ops
