#include "core/ops/embedding/implementations.h"

#include "core/ops/rows.h"

namespace lamina::ops::ref {

void embedding_forward(OpContext&, const EmbeddingForward& args) {
  const int32_t* tokens = args.tokens.as<int32_t>();
  visit_float(args.table.dtype, [&]<class T>(T) {
    for (int64_t t = 0; t < args.tokens.size(0); ++t) {
      const T* from = args.table.as<T>() + tokens[t] * args.table.stride(0);
      T* to = args.y.as<T>() + t * args.y.stride(0);
      for (int64_t i = 0; i < args.y.size(1); ++i) to[i] = from[i];
    }
  });
}

void embedding_backward(OpContext&, const EmbeddingBackward& args) {
  const int32_t* tokens = args.tokens.as<int32_t>();
  visit_acc(args.dtable.dtype, [&]<class A>(A) {
    for (int64_t t = 0; t < args.tokens.size(0); ++t) {
      store_row(args.dtable, tokens[t], load_row<A>(args.dy, t), GradMode::accumulate);
    }
  });
}

}  // namespace lamina::ops::ref
