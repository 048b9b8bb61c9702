#include "core/ops/hyper_connections/hyper_connections.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/ops/hyper_connections/implementations.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

std::vector<Permutation> permutations_in_order(int64_t n) {
  std::vector<Permutation> all;
  Permutation next = {};
  std::iota(next.begin(), next.end(), int8_t{0});
  do {
    all.push_back(next);
  } while (std::next_permutation(next.begin(), next.begin() + n));
  return all;
}

// The streams' own checks; returns the width of one.
int64_t expect_streams(const TensorView& streams, std::string_view what, int64_t n) {
  LAMINA_CHECK(n >= 2 && n <= max_streams, "{} streams, expected 2 to {}", n, max_streams);
  LAMINA_CHECK(streams.rank() == 2 && streams.size(1) % n == 0, "{} is {}, expected rows of {} streams", what,
               streams.to_string(), n);
  expect_compute_dtype(streams, what);
  expect_shape(streams, what, streams.shape);
  return streams.size(1) / n;
}

void expect_coefficients(const TensorView& coefficients, std::string_view what, const TensorView& streams, int64_t n) {
  expect(coefficients, what, accumulation_dtype(streams.dtype), {streams.size(0), num_coefficients(n)});
}

// Of expand and reduce: any number of streams.
void expect_row(const TensorView& row, const TensorView& streams) {
  LAMINA_CHECK(row.rank() == 2 && streams.rank() == 2 && row.size(1) > 0 && streams.size(1) % row.size(1) == 0,
               "the row is {}, the streams are {}", row.to_string(), streams.to_string());
  expect_compute_dtype(streams, "streams");
  expect_shape(streams, "streams", streams.shape);
  expect(row, "row", streams.dtype, {streams.size(0), row.size(1)});
}

}  // namespace

std::span<const Permutation> permutations(int64_t n) {
  static const std::array<std::vector<Permutation>, max_streams - 1> tables = {
      permutations_in_order(2), permutations_in_order(3), permutations_in_order(4)};
  LAMINA_CHECK(n >= 2 && n <= max_streams, "permutations of {}", n);
  return tables[static_cast<size_t>(n - 2)];
}

void hyper_coefficients_forward(OpContext& ctx, const HyperCoefficientsForward& args) {
  static constexpr Implementation<HyperCoefficientsForward> list[] = {
      {"cpu", cpu::hyper_coefficients_forward_refuses, cpu::hyper_coefficients_forward},
      {"ref", nullptr, ref::hyper_coefficients_forward}};
  expect_streams(args.streams, "streams", args.num_streams);
  const DType acc = accumulation_dtype(args.streams.dtype);
  const int64_t tokens = args.streams.size(0), m = num_projections(args.num_streams);
  expect(args.projected, "projected", acc, {tokens, m});
  expect(args.alpha, "alpha", acc, {3});
  expect(args.bias, "bias", acc, {m});
  expect(args.rstd, "rstd", acc, {tokens});
  expect_coefficients(args.coefficients, "coefficients", args.streams, args.num_streams);
  dispatch<HyperCoefficientsForward>(ctx, "hyper_coefficients_forward", list, args);
}

void hyper_coefficients_backward(OpContext& ctx, const HyperCoefficientsBackward& args) {
  static constexpr Implementation<HyperCoefficientsBackward> list[] = {
      {"cpu", cpu::hyper_coefficients_backward_refuses, cpu::hyper_coefficients_backward},
      {"ref", nullptr, ref::hyper_coefficients_backward}};
  expect_streams(args.streams, "streams", args.num_streams);
  const DType acc = accumulation_dtype(args.streams.dtype);
  const int64_t tokens = args.streams.size(0), m = num_projections(args.num_streams);
  expect(args.projected, "projected", acc, {tokens, m});
  expect(args.alpha, "alpha", acc, {3});
  expect(args.bias, "bias", acc, {m});
  expect(args.rstd, "rstd", acc, {tokens});
  expect_coefficients(args.coefficients, "coefficients", args.streams, args.num_streams);
  expect_coefficients(args.dcoefficients, "dcoefficients", args.streams, args.num_streams);
  expect(args.dprojected, "dprojected", acc, {tokens, m});
  expect(args.dstreams, "dstreams", acc, args.streams.shape);
  expect(args.dalpha, "dalpha", acc, {3});
  expect(args.dbias, "dbias", acc, {m});
  dispatch<HyperCoefficientsBackward>(ctx, "hyper_coefficients_backward", list, args);
}

void hyper_read(OpContext& ctx, const HyperRead& args) {
  static constexpr Implementation<HyperRead> list[] = {{"cpu", cpu::hyper_read_refuses, cpu::hyper_read},
                                                       {"ref", nullptr, ref::hyper_read}};
  const int64_t dim = expect_streams(args.streams, "streams", args.num_streams);
  expect_coefficients(args.coefficients, "coefficients", args.streams, args.num_streams);
  expect(args.h, "h", args.streams.dtype, {args.streams.size(0), dim});
  dispatch<HyperRead>(ctx, "hyper_read", list, args);
}

void hyper_write(OpContext& ctx, const HyperWrite& args) {
  static constexpr Implementation<HyperWrite> list[] = {{"cpu", cpu::hyper_write_refuses, cpu::hyper_write},
                                                        {"ref", nullptr, ref::hyper_write}};
  const int64_t dim = expect_streams(args.streams, "streams", args.num_streams);
  expect_coefficients(args.coefficients, "coefficients", args.streams, args.num_streams);
  expect(args.output, "output", args.streams.dtype, {args.streams.size(0), dim});
  expect(args.next, "next", args.streams.dtype, args.streams.shape);
  LAMINA_CHECK(args.next.data != args.streams.data || args.next.num_elements() == 0, "next may not be the streams");
  dispatch<HyperWrite>(ctx, "hyper_write", list, args);
}

void hyper_output_gradient(OpContext& ctx, const HyperOutputGradient& args) {
  static constexpr Implementation<HyperOutputGradient> list[] = {
      {"cpu", cpu::hyper_output_gradient_refuses, cpu::hyper_output_gradient},
      {"ref", nullptr, ref::hyper_output_gradient}};
  const int64_t dim = expect_streams(args.dnext, "dnext", args.num_streams);
  expect_compute_dtype(args.dy, "dy");
  expect_shape(args.dy, "dy", {args.dnext.size(0), dim});
  LAMINA_CHECK(args.dnext.dtype == accumulation_dtype(args.dy.dtype), "dnext is {}, dy is {}", args.dnext.to_string(),
               args.dy.to_string());
  expect_coefficients(args.coefficients, "coefficients", args.dnext, args.num_streams);
  dispatch<HyperOutputGradient>(ctx, "hyper_output_gradient", list, args);
}

void hyper_backward(OpContext& ctx, const HyperBackward& args) {
  static constexpr Implementation<HyperBackward> list[] = {{"cpu", cpu::hyper_backward_refuses, cpu::hyper_backward},
                                                           {"ref", nullptr, ref::hyper_backward}};
  const int64_t dim = expect_streams(args.streams, "streams", args.num_streams), tokens = args.streams.size(0);
  const DType acc = accumulation_dtype(args.streams.dtype);
  expect_coefficients(args.coefficients, "coefficients", args.streams, args.num_streams);
  expect(args.output, "output", args.streams.dtype, {tokens, dim});
  expect(args.dh, "dh", acc, {tokens, dim});
  expect(args.dstreams, "dstreams", acc, args.streams.shape);
  expect_coefficients(args.dcoefficients, "dcoefficients", args.streams, args.num_streams);
  dispatch<HyperBackward>(ctx, "hyper_backward", list, args);
}

void hyper_expand(OpContext& ctx, const HyperExpand& args) {
  static constexpr Implementation<HyperExpand> list[] = {{"cpu", cpu::hyper_expand_refuses, cpu::hyper_expand},
                                                         {"ref", nullptr, ref::hyper_expand}};
  expect_row(args.row, args.streams);
  dispatch<HyperExpand>(ctx, "hyper_expand", list, args);
}

void hyper_reduce(OpContext& ctx, const HyperReduce& args) {
  static constexpr Implementation<HyperReduce> list[] = {{"cpu", cpu::hyper_reduce_refuses, cpu::hyper_reduce},
                                                         {"ref", nullptr, ref::hyper_reduce}};
  expect_row(args.row, args.streams);
  dispatch<HyperReduce>(ctx, "hyper_reduce", list, args);
}

}  // namespace lamina::ops
