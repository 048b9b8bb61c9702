#include "core/ops/attn_res/attn_res.h"

#include "core/ops/attn_res/implementations.h"
#include "core/ops/gpu/register.h"
#include "core/ops/validate.h"

namespace lamina::ops {
namespace {

void expect_query(const AttnResQuery& query, DType dtype, int64_t dim) {
  expect_either(query.norm_weight, "query.norm_weight", dtype, {dim});
  expect_either(query.query, "query.query", dtype, {dim});
}

void expect_query_gradient(const AttnResQueryGradient& dquery, DType acc, int64_t dim) {
  expect(dquery.norm_weight, "dquery.norm_weight", acc, {dim});
  expect(dquery.query, "dquery.query", acc, {dim});
}

void expect_sources(std::span<const TensorView> sources) {
  LAMINA_CHECK(!sources.empty(), "a read needs at least one source");
  LAMINA_CHECK(sources[0].rank() == 2, "sources[0] is {}", sources[0].to_string());
  expect_compute_dtype(sources[0], "sources[0]");
  for (const TensorView& source : sources) expect(source, "a source", sources[0].dtype, sources[0].shape);
}

}  // namespace

void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args) {
  static constexpr Implementation<AttnResPhase1Forward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(attn_res_phase1_forward)  //
      {"cpu", cpu::attn_res_phase1_forward_refuses, cpu::attn_res_phase1_forward},
      {"ref", nullptr, ref::attn_res_phase1_forward}};
  expect_sources(args.sources);
  const DType dtype = args.sources[0].dtype, acc = accumulation_dtype(dtype);
  const int64_t tokens = args.sources[0].size(0), dim = args.sources[0].size(1);
  const int64_t n = static_cast<int64_t>(args.sources.size()), num_queries = static_cast<int64_t>(args.queries.size());
  LAMINA_CHECK(num_queries > 0, "a read needs at least one query");
  LAMINA_CHECK(args.mean.size() == args.queries.size(), "{} queries, {} means", num_queries, args.mean.size());
  for (const AttnResQuery& query : args.queries) expect_query(query, dtype, dim);
  for (const TensorView& mean : args.mean) expect(mean, "a mean", dtype, {tokens, dim});
  expect(args.rstd, "rstd", acc, {n, tokens});
  expect(args.logit, "logit", acc, {num_queries, n, tokens});
  expect(args.lse, "lse", acc, {num_queries, tokens});
  dispatch<AttnResPhase1Forward>(ctx, "attn_res_phase1_forward", list, args);
}

void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args) {
  static constexpr Implementation<AttnResMergeForward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(attn_res_merge_forward)  //
      {"cpu", cpu::attn_res_merge_forward_refuses, cpu::attn_res_merge_forward},
      {"ref", nullptr, ref::attn_res_merge_forward}};
  const DType dtype = args.mean.dtype, acc = accumulation_dtype(dtype);
  const Shape shape = args.mean.shape;
  LAMINA_CHECK(shape.rank() == 2, "mean is {}", args.mean.to_string());
  expect_compute_dtype(args.mean, "mean");
  expect_shape(args.mean, "mean", shape);
  expect(args.lse, "lse", acc, {shape[0]});
  LAMINA_CHECK(args.delta.empty() == args.partial_sum.empty(), "delta and partial_sum are given together");
  LAMINA_CHECK(args.partial || !args.delta, "delta without partial");
  expect_query(args.query, dtype, shape[1]);
  if (args.partial) {
    expect(args.partial, "partial", dtype, shape);
    expect(args.partial_rstd, "partial_rstd", acc, {shape[0]});
    expect(args.partial_logit, "partial_logit", acc, {shape[0]});
  }
  if (args.delta) {
    expect(args.delta, "delta", dtype, shape);
    expect(args.partial_sum, "partial_sum", dtype, shape);
  }
  expect_either(args.norm_weight, "norm_weight", dtype, {shape[1]});
  expect(args.h, "h", dtype, shape);
  expect(args.y, "y", dtype, shape);
  expect(args.lse_total, "lse_total", acc, {shape[0]});
  expect(args.h_rstd, "h_rstd", acc, {shape[0]});
  dispatch<AttnResMergeForward>(ctx, "attn_res_merge_forward", list, args);
}

void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args) {
  static constexpr Implementation<AttnResMergeBackward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(attn_res_merge_backward)  //
      {"cpu", cpu::attn_res_merge_backward_refuses, cpu::attn_res_merge_backward},
      {"ref", nullptr, ref::attn_res_merge_backward}};
  const DType dtype = args.h.dtype, acc = accumulation_dtype(dtype);
  const Shape shape = args.h.shape;
  LAMINA_CHECK(shape.rank() == 2, "h is {}", args.h.to_string());
  expect_compute_dtype(args.h, "h");
  expect_shape(args.h, "h", shape);
  expect(args.h_rstd, "h_rstd", acc, {shape[0]});
  expect_either(args.norm_weight, "norm_weight", dtype, {shape[1]});
  expect(args.dy, "dy", dtype, shape);
  expect_query(args.query, dtype, shape[1]);
  expect_either(args.dh, "dh", dtype, shape);
  expect(args.dh_dot_h, "dh_dot_h", acc, {shape[0]});
  expect(args.dnorm_weight, "dnorm_weight", acc, {shape[1]});
  if (args.partial) {
    expect(args.partial, "partial", dtype, shape);
    expect(args.partial_rstd, "partial_rstd", acc, {shape[0]});
    expect(args.partial_logit, "partial_logit", acc, {shape[0]});
    expect(args.lse_total, "lse_total", acc, {shape[0]});
    expect_either(args.dpartial, "dpartial", dtype, shape);
    expect_query_gradient(args.dquery, acc, shape[1]);
  }
  dispatch<AttnResMergeBackward>(ctx, "attn_res_merge_backward", list, args);
}

void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args) {
  static constexpr Implementation<AttnResPhase1Backward> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(attn_res_phase1_backward)  //
      {"cpu", cpu::attn_res_phase1_backward_refuses, cpu::attn_res_phase1_backward},
      {"ref", nullptr, ref::attn_res_phase1_backward}};
  expect_sources(args.sources);
  const DType dtype = args.sources[0].dtype, acc = accumulation_dtype(dtype);
  const int64_t tokens = args.sources[0].size(0), dim = args.sources[0].size(1);
  const size_t n = args.sources.size(), num_queries = args.queries.size();
  LAMINA_CHECK(num_queries > 0, "a read needs at least one query");
  LAMINA_CHECK(args.dsources.size() == n && args.dsource_modes.size() == n, "{} sources, {} gradients, {} modes", n,
               args.dsources.size(), args.dsource_modes.size());
  LAMINA_CHECK(args.lse_total.size() == num_queries && args.dh.size() == num_queries &&
                   args.dh_dot_h.size() == num_queries && args.dqueries.size() == num_queries,
               "{} queries; {} lse_total, {} dh, {} dh_dot_h, {} dqueries", num_queries, args.lse_total.size(),
               args.dh.size(), args.dh_dot_h.size(), args.dqueries.size());
  expect(args.rstd, "rstd", acc, {static_cast<int64_t>(n), tokens});
  expect(args.logit, "logit", acc, {static_cast<int64_t>(num_queries), static_cast<int64_t>(n), tokens});
  for (size_t q = 0; q < num_queries; ++q) {
    expect_query(args.queries[q], dtype, dim);
    expect(args.lse_total[q], "an lse_total", acc, {tokens});
    expect_either(args.dh[q], "a dh", dtype, {tokens, dim});
    LAMINA_CHECK(args.dh[q].dtype == args.dh[0].dtype, "dh[{}] is {}, dh[0] {}", q, args.dh[q].to_string(),
                 args.dh[0].to_string());
    expect(args.dh_dot_h[q], "a dh_dot_h", acc, {tokens});
    expect_query_gradient(args.dqueries[q], acc, dim);
  }
  for (const TensorView& dsource : args.dsources) expect(dsource, "a dsource", acc, {tokens, dim});
  dispatch<AttnResPhase1Backward>(ctx, "attn_res_phase1_backward", list, args);
}

void attn_res_depth_weights(OpContext& ctx, const AttnResDepthWeights& args) {
  static constexpr Implementation<AttnResDepthWeights> list[] = {LAMINA_CUDA_IMPLEMENTATION(attn_res_depth_weights)  //
                                                                 {"ref", nullptr, ref::attn_res_depth_weights}};
  LAMINA_CHECK(args.logit.rank() == 2, "logit is {}", args.logit.to_string());
  const DType acc = args.logit.dtype;
  const int64_t n = args.logit.size(0), tokens = args.logit.size(1);
  LAMINA_CHECK(acc == DType::f32 || acc == DType::f64, "logit is {}, expected fp32 or fp64", args.logit.to_string());
  expect_shape(args.logit, "logit", {n, tokens});
  expect(args.lse_total, "lse_total", acc, {tokens});
  if (args.partial_logit) expect(args.partial_logit, "partial_logit", acc, {tokens});
  const size_t expected = static_cast<size_t>(n) + (args.partial_logit ? 1 : 0);
  LAMINA_CHECK(args.weights.size() == expected, "{} weights, expected {}", args.weights.size(), expected);
  LAMINA_CHECK(args.entropy != nullptr && args.largest_weight != nullptr);
  dispatch<AttnResDepthWeights>(ctx, "attn_res_depth_weights", list, args);
}

void attn_res_source_cosines(OpContext& ctx, const AttnResSourceCosines& args) {
  static constexpr Implementation<AttnResSourceCosines> list[] = {
      LAMINA_CUDA_IMPLEMENTATION(attn_res_source_cosines)  //
      {"ref", nullptr, ref::attn_res_source_cosines}};
  expect_sources(args.sources);
  const size_t n = args.sources.size();
  LAMINA_CHECK(args.cosines.size() == n * (n - 1) / 2, "{} cosines of {} sources", args.cosines.size(), n);
  LAMINA_CHECK(args.num_tokens > 0, "of at most {} tokens", args.num_tokens);
  dispatch<AttnResSourceCosines>(ctx, "attn_res_source_cosines", list, args);
}

}  // namespace lamina::ops
