#include "core/ops/experts/implementations.h"

#include <algorithm>
#include <cstring>

#include "core/ops/experts/row_kernels.h"
#include "core/tensor/host_copy.h"

namespace lamina::ops::cuda {
namespace {

constexpr const char* only_on_cpu = "fp64 runs on the CPU";

cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

}  // namespace

const char* group_rows_refuses(const GroupRows& args) {
  if (args.weights.dtype == DType::f64) return only_on_cpu;
  if (args.offsets.size() > size_t{1} << 24) return "more than 2^24 experts";
  return nullptr;
}

// Waits once for the device, unless the offsets are known: without a capacity, the sizes of the products that follow are the router's
// choice, and the host must know them to launch these.
void group_rows(OpContext& ctx, const GroupRows& args) {
  const auto experts = static_cast<int64_t>(args.offsets.size()) - 1;
  GroupRowsParams p{};
  p.num_pairs = args.chosen.num_elements();
  if (p.num_pairs == 0) {
    std::fill(args.offsets.begin(), args.offsets.end(), 0);
    return;
  }
  p.num_experts = static_cast<int>(experts);
  p.k = static_cast<int>(args.chosen.size(1));
  p.chosen = args.chosen.as<int32_t>();
  p.weights = args.weights.as<float>();
  p.row_of = args.row_of.as<int32_t>();
  p.position = args.position.as<int32_t>();
  p.pair_weight = args.pair_weight.as<float>();
  p.table = ctx.scratch.take(DType::i32, {experts, group_rows_chunks(p.num_pairs)}).as<int32_t>();
  const TensorView offsets = ctx.scratch.take(DType::f64, {experts + 1});
  static_assert(sizeof(int64_t) == sizeof(double));
  p.offsets = static_cast<int64_t*>(offsets.data);
  launch_group_rows(p, stream_of(ctx));
  if (args.knows_offsets) return;
  const HostCopy found(offsets, ctx.stream);
  std::memcpy(args.offsets.data(), found->data, static_cast<size_t>(offsets.num_bytes()));
}

const char* gather_rows_refuses(const GatherRows& args) {
  return args.x.dtype == DType::f64 ? only_on_cpu : nullptr;
}

void gather_rows(OpContext& ctx, const GatherRows& args) {
  if (args.y.num_elements() == 0) return;
  GatherRowsParams p{};
  p.num_rows = args.y.size(0);
  p.num_columns = args.y.size(1);
  p.x_stride = args.x.stride(0);
  p.y_stride = args.y.stride(0);
  p.element_bytes = static_cast<int>(size_of(args.x.dtype));
  p.x = args.x.data;
  p.index = args.index.as<int32_t>();
  p.y = args.y.data;
  launch_gather_rows(p, stream_of(ctx));
}

const char* combine_rows_refuses(const CombineRows& args) {
  return args.x.dtype == DType::f64 ? only_on_cpu : nullptr;
}

void combine_rows(OpContext& ctx, const CombineRows& args) {
  if (args.y.num_elements() == 0) return;
  CombineRowsParams p{};
  p.num_tokens = args.y.size(0);
  p.num_columns = args.y.size(1);
  p.k = args.position.size(1);
  p.x_stride = args.x.stride(0);
  p.y_stride = args.y.stride(0);
  p.x_low = args.x.dtype == DType::bf16;
  p.y_low = args.y.dtype == DType::bf16;
  p.accumulate = args.mode == GradMode::accumulate;
  p.x = args.x.data;
  p.position = args.position.as<int32_t>();
  p.y = args.y.data;
  launch_combine_rows(p, stream_of(ctx));
}

}  // namespace lamina::ops::cuda
