// A matrix of activations [tokens, columns] seen in other ways. No data moves.
#pragma once

#include "model/sublayer.h"

namespace lamina::model {

// Columns [begin, end) of a row-major matrix.
inline TensorView columns(const TensorView& x, int64_t begin, int64_t end) {
  return x.slice(1, begin, end);
}

// [tokens, heads * width] (any row stride) as [tokens, heads, width].
inline TensorView heads_of(const TensorView& x, int64_t heads, int64_t width) {
  TensorView out = x;
  out.shape = {x.size(0), heads, width};
  out.strides = {x.stride(0), width, 1};
  return out;
}

// [tokens, ...] as [batch, T, ...].
inline TensorView per_sequence(const TensorView& x, const Batch& batch) {
  TensorView out = x;
  if (x.rank() == 2) {
    out.shape = {batch.num_sequences, batch.seq_len, x.size(1)};
    out.strides = {batch.seq_len * x.stride(0), x.stride(0), x.stride(1)};
  } else {
    out.shape = {batch.num_sequences, batch.seq_len, x.size(1), x.size(2)};
    out.strides = {batch.seq_len * x.stride(0), x.stride(0), x.stride(1), x.stride(2)};
  }
  return out;
}

// [tokens, heads * width] (any row stride) as [batch, T, heads, width].
inline TensorView per_head(const TensorView& x, const Batch& batch, int64_t heads, int64_t width) {
  return per_sequence(heads_of(x, heads, width), batch);
}

}  // namespace lamina::model
