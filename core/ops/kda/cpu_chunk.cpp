#include "core/ops/kda/cpu_chunk.h"

#include <algorithm>

namespace lamina::ops::cpu {

std::vector<Segment> segments_of(const TensorView& document_starts, int64_t batch, int64_t num_tokens) {
  std::vector<Segment> out;
  for (int64_t row = 0; row < batch; ++row) {
    for (int64_t begin = 0; begin < num_tokens;) {
      const int64_t end = document_end(document_starts, row, begin, num_tokens);
      out.push_back({row, begin, end, begin == 0, end == num_tokens});
      begin = end;
    }
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const Segment& a, const Segment& b) { return a.end - a.begin > b.end - b.begin; });
  return out;
}

const char* refuses_head_dims(const TensorView& q, const TensorView& v) {
  if (q.dtype == DType::f64) return "vector kernels are for bf16 and fp32";
  const bool whole =
      q.size(3) % static_cast<int64_t>(sub_block) == 0 && v.size(3) % static_cast<int64_t>(sub_block) == 0;
  return whole ? nullptr : "head sizes aren't multiples of 16";
}

void copy_states(const TensorView& from, const TensorView& to) {
  if (!to) return;
  if (from)
    std::copy_n(from.as<float>(), from.num_elements(), to.as<float>());
  else
    std::fill_n(to.as<float>(), to.num_elements(), 0.0f);
}

ChunkWork take_chunk(OpContext& ctx, const HeadDims& dims) {
  const size_t d_k = dims.d_k, d_v = dims.d_v;
  return {take_floats(ctx, 2 * chunk * d_k),
          take_floats(ctx, chunk * d_k),
          take_floats(ctx, 2 * chunk * d_k),
          take_floats(ctx, chunk * d_k),
          take_floats(ctx, num_sub_blocks * d_k),
          take_floats(ctx, d_k),
          take_floats(ctx, d_k),
          take_floats(ctx, sub_block * d_k),
          take_floats(ctx, chunk),
          take_floats(ctx, chunk * chunk),
          take_floats(ctx, chunk * chunk),
          take_floats(ctx, chunk * d_v),
          take_floats(ctx, 2 * chunk * d_v),
          take_floats(ctx, chunk * d_v),
          take_floats(ctx, d_k * d_v),
          take_floats(ctx, chunk * dims.v_padded()),
          take_floats(ctx, chunk * d_k),
          take_floats(ctx, d_k * dims.v_padded())};
}

}  // namespace lamina::ops::cpu
