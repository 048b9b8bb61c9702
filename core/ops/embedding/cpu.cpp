#include "core/ops/embedding/implementations.h"

#include <cstring>

#include "core/ops/simd/parameters.h"
#define HWY_TARGET_INCLUDE "core/ops/embedding/cpu.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

// Columns [begin, end) of all tokens.
template <class T>
void add_columns(const EmbeddingBackward& args, int64_t begin, int64_t end) {
  const int32_t* tokens = static_cast<const int32_t*>(args.tokens.data);
  for (int64_t t = 0; t < args.tokens.size(0); ++t) {
    const T* dy = row<T>(args.dy, t) + begin;
    float* dtable = row<float>(args.dtable, tokens[t]) + begin;
    each_vector(static_cast<size_t>(end - begin), [&](size_t i, auto part) LAMINA_VECTOR_BODY {
      store(part, hn::Add(load(part, dtable + i), load(part, dy + i)), dtable + i);
    });
  }
}

void embedding_add(const EmbeddingBackward& args, int64_t begin, int64_t end) {
  if (args.dy.dtype == DType::bf16) return add_columns<bf16>(args, begin, end);
  add_columns<float>(args, begin, end);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(embedding_add);

const char* embedding_forward_refuses(const EmbeddingForward& args) {
  return refuses_f64(args.table);
}
const char* embedding_backward_refuses(const EmbeddingBackward& args) {
  return refuses_f64(args.dtable);
}

void embedding_forward(OpContext&, const EmbeddingForward& args) {
  const int64_t size = size_of(args.table.dtype), dim = args.table.size(1);
  const int32_t* tokens = args.tokens.as<int32_t>();
  lamina::cpu::parallel_for(args.tokens.size(0), row_grain(dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::memcpy(static_cast<char*>(args.y.data) + t * args.y.stride(0) * size,
                  static_cast<const char*>(args.table.data) + tokens[t] * args.table.stride(0) * size,
                  static_cast<size_t>(dim * size));
    }
  });
}

// Threads share columns, not tokens: every element still sums its tokens in order.
void embedding_backward(OpContext&, const EmbeddingBackward& args) {
  const auto run = HWY_DYNAMIC_DISPATCH(embedding_add);
  const int64_t dim = args.dy.size(1), cache_line = 16, lines = (dim + cache_line - 1) / cache_line;
  const int64_t grain = 1 + elements_per_thread / std::max<int64_t>(1, args.tokens.size(0) * cache_line);
  lamina::cpu::parallel_for(lines, grain, [&](int64_t begin, int64_t end) {
    run(args, begin * cache_line, std::min(end * cache_line, dim));
  });
}

}  // namespace lamina::ops::cpu
#endif
