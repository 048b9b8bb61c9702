#include "core/ops/experts/implementations.h"
#include "core/ops/experts/row_kernels.h"
#include "core/ops/gpu/operands.h"

namespace lamina::ops::cuda {
namespace {

constexpr const char* only_on_cpu = "fp64 runs on the CPU";

}  // namespace

const char* group_rows_refuses(const GroupRows& args) {
  if (args.weights.dtype == DType::f64) return only_on_cpu;
  if (args.offsets.size(0) > int64_t{1} << 24) return "more than 2^24 experts";
  return nullptr;
}

void group_rows(OpContext& ctx, const GroupRows& args) {
  const int64_t experts = args.offsets.size(0) - 1;
  GroupRowsParams p{};
  p.num_pairs = args.chosen.num_elements();
  p.num_experts = static_cast<int>(experts);
  p.k = static_cast<int>(args.chosen.size(1));
  p.chosen = args.chosen.as<int32_t>();
  p.weights = args.weights.as<float>();
  p.row_of = args.row_of.as<int32_t>();
  p.position = args.position.as<int32_t>();
  p.pair_weight = args.pair_weight.as<float>();
  p.table = ctx.scratch.take(DType::i32, {experts, group_rows_chunks(p.num_pairs)}).as<int32_t>();
  p.offsets = args.offsets.as<int32_t>();
  launch_group_rows(p, stream_of(ctx));
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
