#include <algorithm>
#include <vector>

#include "core/device/cpu/parallel_for.h"
#include "core/ops/kda/cpu_chunk.h"
#include "core/ops/kda/implementations.h"

#define HWY_TARGET_INCLUDE "core/ops/kda/cpu_forward.cpp"
#include "core/ops/simd/simd.h"

#include "core/ops/kda/cpu_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void forward_chunk(const KdaForward& args, const HeadDims& dims, const Segment& segment, int64_t head, size_t first,
                   size_t count, const ChunkWork& work) {
  const size_t d_k = dims.d_k, d_v = dims.d_v;
  load_chunk<T>(args, dims, segment, head, first, count, work);
  load_rows<T>(args.v, segment, head, first, count, 1.0f, work.v);
  decay_sub_blocks(dims, work, nullptr, nullptr);
  score(dims, work);
  decay_left(dims, work, 1.0f);
  rows_to_panels(work.state, d_v, d_k, d_v, work.s_panels, d_k * panel_width);
  product<Left::plain>({work.left, d_k}, work.s_panels, d_k * panel_width, d_k, 2 * chunk, d_v, work.output, d_v,
                       false);
  solve(dims, work);
  product<Left::plain>({work.aqk, chunk}, work.r_panels, chunk * panel_width, chunk, chunk, d_v, work.output, d_v, true,
                       Triangle::lower);
  for (size_t r = 0; r < count; ++r) {
    prefetch_row<T>(args.o, segment, head, first + r + rows_ahead);
    write_row(work.output + r * d_v, d_v, 1.0f, row_of<T>(args.o, segment.batch, head, first + r));
  }
  advance(dims, work);
}

template <class T>
void forward_segment(const KdaForward& args, const HeadDims& dims, const Segment& segment, int64_t head,
                     const ChunkWork& work) {
  const int64_t heads = args.q.size(2);
  load_state(args.initial_state, segment.first, dims, segment.batch, heads, head, work.state);
  const auto begin = static_cast<size_t>(segment.begin), end = static_cast<size_t>(segment.end);
  for (size_t first = begin; first < end; first += chunk) {
    forward_chunk<T>(args, dims, segment, head, first, std::min(chunk, end - first), work);
  }
  if (segment.last && args.final_state) {
    const int64_t offset = (segment.batch * heads + head) * static_cast<int64_t>(dims.d_k * dims.d_v);
    std::copy_n(work.state, dims.d_k * dims.d_v, args.final_state.as<float>() + offset);
  }
}

void kda_segment(const KdaForward& args, const HeadDims& dims, const Segment& segment, int64_t head,
                 const ChunkWork& work) {
  if (args.q.dtype == DType::bf16)
    forward_segment<bf16>(args, dims, segment, head, work);
  else
    forward_segment<float>(args, dims, segment, head, work);
}

}  // namespace
}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(kda_segment);

const char* kda_forward_refuses(const KdaForward& args) {
  return refuses_head_dims(args.q, args.v);
}

void kda_forward(OpContext& ctx, const KdaForward& args) {
  if (args.q.size(1) == 0) return copy_states(args.initial_state, args.final_state);
  const HeadDims dims = dims_of(args.q, args.v);
  const std::vector<Segment> segments = segments_of(args.document_starts, args.q.size(0), args.q.size(1));
  std::vector<ChunkWork> work;
  const auto run = HWY_DYNAMIC_DISPATCH(kda_segment);
  for_segments(
      segments, args.q.size(2),
      [&](int threads) {
        for (int thread = 0; thread < threads; ++thread) work.push_back(take_chunk(ctx, dims));
      },
      [&](int thread, const Segment& segment, int64_t head) {
        run(args, dims, segment, head, work[static_cast<size_t>(thread)]);
      });
}

}  // namespace lamina::ops::cpu
#endif
