#include "core/ops/experts/experts.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "core/ops/experts/implementations.h"
#include "core/ops/gpu/register.h"
#include "core/ops/validate.h"
#include "core/tensor/host_copy.h"

namespace lamina::ops {
namespace {

void expect_indices(const TensorView& v, std::string_view what, int64_t least, int64_t limit) {
  if (!is_readable(v)) return;
  const int32_t* index = v.as<int32_t>();
  for (int64_t n = 0; n < v.num_elements(); ++n) {
    LAMINA_CHECK(index[n] >= least && index[n] < limit, "{} is {} at {}, expected {} to {}", what, index[n], n, least,
                 limit - 1);
  }
}

template <class Offsets>
void expect_rising(const Offsets& offsets, int64_t num_rows) {
  LAMINA_CHECK(offsets.front() == 0 && offsets.back() == num_rows, "offsets run from {} to {}, expected 0 to {}",
               offsets.front(), offsets.back(), num_rows);
  for (size_t e = 1; e < offsets.size(); ++e) {
    LAMINA_CHECK(offsets[e - 1] <= offsets[e], "offsets {} and {} of expert {}", offsets[e - 1], offsets[e], e - 1);
  }
}

void expect_rows(const ExpertRows& rows, int64_t num_rows, size_t num_experts) {
  const auto count = static_cast<int64_t>(num_experts) + 1;
  expect(rows.offsets, "offsets", DType::i32, {count});
  expect_contiguous(rows.offsets, "offsets");
  if (is_readable(rows.offsets)) expect_rising(std::span(rows.offsets.as<int32_t>(), num_experts + 1), num_rows);
  if (rows.host.empty()) return;
  LAMINA_CHECK(std::ssize(rows.host) == count, "{} offsets on the host, expected {}", rows.host.size(), count);
  expect_rising(rows.host, num_rows);
}

void expect_matrix(const TensorView& v, std::string_view what) {
  LAMINA_CHECK(v.rank() == 2, "{} is {}", what, v.to_string());
  expect_compute_dtype(v, what);
  expect_shape(v, what, v.shape);
}

// One contiguous [out, in] for every expert.
void expect_experts(std::span<const TensorView> matrices, std::string_view what, DType dtype, const Shape& shape) {
  for (const TensorView& matrix : matrices) {
    expect(matrix, what, dtype, shape);
    expect_contiguous(matrix, what);
  }
}

}  // namespace

bool needs_host_offsets(const OpContext& ctx, DType dtype) {
  return ctx.stream.device().kind != DeviceKind::cpu && dtype != DType::bf16;
}

void group_rows(OpContext& ctx, const GroupRows& args) {
  static constexpr Implementation<GroupRows> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(group_rows){"ref", nullptr, ref::group_rows}};
  LAMINA_CHECK(args.chosen.rank() == 2 && args.offsets.rank() == 1 && args.offsets.size(0) > 0,
               "chosen is {}, offsets {}", args.chosen.to_string(), args.offsets.to_string());
  const int64_t num_pairs = args.chosen.num_elements();
  LAMINA_CHECK(num_pairs <= std::numeric_limits<int32_t>::max(), "{} pairs", num_pairs);
  expect(args.chosen, "chosen", DType::i32, args.chosen.shape);
  expect(args.offsets, "offsets", DType::i32, args.offsets.shape);
  expect(args.weights, "weights", accumulation_dtype(args.weights.dtype), args.chosen.shape);
  expect(args.position, "position", DType::i32, args.chosen.shape);
  expect(args.row_of, "row_of", DType::i32, {num_pairs});
  expect(args.pair_weight, "pair_weight", args.weights.dtype, {num_pairs});
  expect_contiguous(args.chosen, "chosen");
  expect_contiguous(args.offsets, "offsets");
  expect_contiguous(args.weights, "weights");
  expect_contiguous(args.position, "position");
  expect_indices(args.chosen, "chosen", -1, args.offsets.size(0) - 1);
  LAMINA_CHECK(args.host_offsets.empty() || std::ssize(args.host_offsets) == args.offsets.size(0),
               "{} offsets on the host, expected {}", args.host_offsets.size(), args.offsets.size(0));
  dispatch<GroupRows>(ctx, "group_rows", list, args);
  if (args.host_offsets.empty()) return;
  const HostCopy offsets(args.offsets, ctx.stream);
  std::copy_n(offsets->as<int32_t>(), args.host_offsets.size(), args.host_offsets.begin());
}

void gather_rows(OpContext& ctx, const GatherRows& args) {
  static constexpr Implementation<GatherRows> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(gather_rows){"cpu", cpu::gather_rows_refuses, cpu::gather_rows},
      {"ref", nullptr, ref::gather_rows}};
  expect_matrix(args.x, "x");
  LAMINA_CHECK(args.y.rank() == 2, "y is {}", args.y.to_string());
  expect(args.y, "y", args.x.dtype, {args.y.size(0), args.x.size(1)});
  expect(args.index, "index", DType::i32, {args.y.size(0)});
  expect_indices(args.index, "index", 0, args.x.size(0));
  dispatch<GatherRows>(ctx, "gather_rows", list, args);
}

void combine_rows(OpContext& ctx, const CombineRows& args) {
  static constexpr Implementation<CombineRows> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(combine_rows){"cpu", cpu::combine_rows_refuses, cpu::combine_rows},
      {"ref", nullptr, ref::combine_rows}};
  expect_matrix(args.x, "x");
  expect_matrix(args.y, "y");
  LAMINA_CHECK(args.x.size(1) == args.y.size(1) && accumulation_dtype(args.x.dtype) == accumulation_dtype(args.y.dtype),
               "x is {}, y {}", args.x.to_string(), args.y.to_string());
  LAMINA_CHECK(args.position.rank() == 2, "position is {}", args.position.to_string());
  expect(args.position, "position", DType::i32, {args.y.size(0), args.position.size(1)});
  expect_contiguous(args.position, "position");
  expect_indices(args.position, "position", -1, args.x.size(0));
  dispatch<CombineRows>(ctx, "combine_rows", list, args);
}

void grouped_linear(OpContext& ctx, const GroupedLinear& args) {
  static constexpr Implementation<GroupedLinear> list[] = {
      LAMINA_CUDA_VARIANT("cublas", grouped_linear_cublas)
          LAMINA_CUDA_IMPLEMENTATION(grouped_linear){"cpu", cpu::grouped_linear_refuses, cpu::grouped_linear},
      {"ref", nullptr, ref::grouped_linear}};
  expect_matrix(args.x, "x");
  LAMINA_CHECK(args.y.rank() == 2, "y is {}", args.y.to_string());
  expect_either(args.y, "y", args.x.dtype, {args.x.size(0), args.y.size(1)});
  expect_rows(args.rows, args.x.size(0), args.weights.size());
  expect_experts(args.weights, "weights", args.x.dtype, {args.y.size(1), args.x.size(1)});
  dispatch<GroupedLinear>(ctx, "grouped_linear", list, args);
}

void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args) {
  static constexpr Implementation<GroupedLinearInputGradient> list[] = {
      LAMINA_CUDA_VARIANT("cublas", grouped_linear_input_gradient_cublas)
          LAMINA_CUDA_IMPLEMENTATION(grouped_linear_input_gradient){"cpu", cpu::grouped_linear_input_gradient_refuses,
                                                                    cpu::grouped_linear_input_gradient},
      {"ref", nullptr, ref::grouped_linear_input_gradient}};
  expect_matrix(args.dy, "dy");
  LAMINA_CHECK(args.dx.rank() == 2, "dx is {}", args.dx.to_string());
  expect_either(args.dx, "dx", args.dy.dtype, {args.dy.size(0), args.dx.size(1)});
  expect_rows(args.rows, args.dy.size(0), args.weights.size());
  expect_experts(args.weights, "weights", args.dy.dtype, {args.dy.size(1), args.dx.size(1)});
  dispatch<GroupedLinearInputGradient>(ctx, "grouped_linear_input_gradient", list, args);
}

void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args) {
  static constexpr Implementation<GroupedLinearWeightGradient> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(grouped_linear_weight_gradient){"cpu", cpu::grouped_linear_weight_gradient_refuses,
                                                                 cpu::grouped_linear_weight_gradient},
      {"ref", nullptr, ref::grouped_linear_weight_gradient}};
  expect_matrix(args.x, "x");
  LAMINA_CHECK(args.dy.rank() == 2, "dy is {}", args.dy.to_string());
  expect(args.dy, "dy", args.x.dtype, {args.x.size(0), args.dy.size(1)});
  expect_rows(args.rows, args.x.size(0), args.dweights.size());
  expect_experts(args.dweights, "dweights", accumulation_dtype(args.x.dtype), {args.dy.size(1), args.x.size(1)});
  dispatch<GroupedLinearWeightGradient>(ctx, "grouped_linear_weight_gradient", list, args);
}

}  // namespace lamina::ops
