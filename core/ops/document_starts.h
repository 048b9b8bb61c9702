// Where documents packed into one sequence begin, as the operations that may not mix them read it: document_starts [batch, T]
// i32, contiguous, holds for each token the position in its sequence of its document's first token. Empty: one document each.
#pragma once

#include "core/ops/validate.h"

namespace lamina::ops {

inline void check_document_starts(const TensorView& starts, int64_t batch, int64_t num_tokens) {
  if (starts.empty()) return;
  expect(starts, "document_starts", DType::i32, {batch, num_tokens});
  expect_contiguous(starts, "document_starts");
  if (!is_readable(starts)) return;
  for (int64_t row = 0; row < batch; ++row) {
    const int32_t* start = starts.as<int32_t>() + row * num_tokens;
    for (int64_t t = 0; t < num_tokens; ++t) {
      const bool begins = start[t] == t, continues = t > 0 && start[t] == start[t - 1];
      LAMINA_CHECK(begins || continues, "document_starts[{}, {}] is {}, expected {} or the value before it", row, t,
                   start[t], t);
    }
  }
}

// The first token of t's document, which lies in sequence `row`.
inline int64_t document_start(const TensorView& starts, int64_t row, int64_t t) {
  return starts.empty() ? 0 : static_cast<const int32_t*>(starts.data)[row * starts.size(1) + t];
}

// One past the last token of the document that begins at `begin`.
inline int64_t document_end(const TensorView& starts, int64_t row, int64_t begin, int64_t num_tokens) {
  if (starts.empty()) return num_tokens;
  int64_t end = begin + 1;
  while (end < num_tokens && document_start(starts, row, end) == begin) ++end;
  return end;
}

}  // namespace lamina::ops
