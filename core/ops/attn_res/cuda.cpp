// From views to the parameters of the kernels of Attention Residuals.
#include "core/ops/attn_res/implementations.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "core/device/cuda/check.h"
#include "core/ops/attn_res/kernels.h"
#include "core/tensor/host_copy.h"

namespace lamina::ops::cuda {
namespace {

cudaStream_t stream_of(OpContext& ctx) {
  return static_cast<cudaStream_t>(ctx.stream.state()->handle());
}

const char* refuses(DType dtype, int64_t dim, size_t num_sources = 0, size_t num_queries = 0) {
  if (dtype == DType::f64) return "fp64 runs on the CPU";
  if (dim > attn_res_max_dim) return "rows of more than 8192 elements do not fit into a block's registers";
  if (num_sources > static_cast<size_t>(attn_res_max_sources)) return "a read of more than 128 sources";
  if (num_queries > static_cast<size_t>(attn_res_max_queries)) return "a read of more than 64 queries";
  return nullptr;
}

Rows rows_of(const TensorView& v) {
  return {v.data, v.data == nullptr ? 0 : v.stride(0)};
}
Vector vector_of(const TensorView& v) {
  return {v.data, v.dtype == DType::bf16};
}
QueryVectors vectors_of(const AttnResQuery& query) {
  return {vector_of(query.query), vector_of(query.norm_weight)};
}
float* floats(const TensorView& v) {
  return static_cast<float*>(v.data);
}

// Whether rows, those given, can be moved 16 bytes at a time; `dim` must be a whole number of packs of the compute dtype.
class VectorCheck {
 public:
  VectorCheck(DType dtype, int64_t dim) : fits_(dim % (16 / size_of(dtype)) == 0) {}
  VectorCheck& operator()(const TensorView& v) {
    if (v.data == nullptr) return *this;
    const auto address = reinterpret_cast<uintptr_t>(v.data);
    fits_ = fits_ && address % 16 == 0 && (v.size(0) <= 1 || v.stride(0) * size_of(v.dtype) % 16 == 0);
    return *this;
  }
  VectorCheck& operator()(std::span<const TensorView> views) {
    for (const TensorView& v : views) (*this)(v);
    return *this;
  }
  bool fits() const { return fits_; }

 private:
  bool fits_;
};

// w (.) g of every query, and work counters, in scratch: into the parameters of a read.
template <class Params>
void weight_queries(OpContext& ctx, std::span<const AttnResQuery> queries, int64_t dim, Params& read) {
  const auto count = static_cast<int64_t>(queries.size());
  WeightedQueries p{};
  for (size_t q = 0; q < queries.size(); ++q) p.queries[q] = vectors_of(queries[q]);
  p.out = floats(ctx.scratch.take(DType::f32, {count, dim}));
  p.work_counters = ctx.scratch.take(DType::i32, {attn_res_work_counters}).as<int32_t>();
  p.dim = dim;
  p.num_queries = static_cast<int>(count);
  launch_weighted_queries(p, stream_of(ctx));
  read.weighted = p.out;
  read.work_counter = p.work_counters;
}

ColumnSums::Output plain_output(const TensorView& sum) {
  return {{}, {floats(sum), nullptr}};
}
ColumnSums::Output query_output(const AttnResQuery& query, const AttnResQueryGradient& gradient) {
  return {vectors_of(query), {floats(gradient.query), floats(gradient.norm_weight)}};
}

}  // namespace

const char* attn_res_phase1_forward_refuses(const AttnResPhase1Forward& args) {
  return refuses(args.sources[0].dtype, args.sources[0].size(1), args.sources.size(), args.queries.size());
}

void attn_res_phase1_forward(OpContext& ctx, const AttnResPhase1Forward& args) {
  const TensorView& first = args.sources[0];
  if (first.num_elements() == 0) return;
  Phase1ForwardParams p{};
  for (size_t j = 0; j < args.sources.size(); ++j) p.sources[j] = rows_of(args.sources[j]);
  for (size_t q = 0; q < args.mean.size(); ++q) p.mean[q] = rows_of(args.mean[q]);
  weight_queries(ctx, args.queries, first.size(1), p);
  p.rstd = floats(args.rstd), p.rstd_stride = args.rstd.stride(0);
  p.logit = floats(args.logit), p.logit_query_stride = args.logit.stride(0);
  p.logit_source_stride = args.logit.stride(1);
  p.lse = floats(args.lse), p.lse_stride = args.lse.stride(0);
  p.tokens = first.size(0), p.dim = static_cast<int>(first.size(1));
  p.num_sources = static_cast<int>(args.sources.size()), p.num_queries = static_cast<int>(args.queries.size());
  p.eps = static_cast<float>(args.eps);
  p.is_bf16 = first.dtype == DType::bf16;
  p.is_vector = VectorCheck(first.dtype, first.size(1))(args.sources)(args.mean).fits();
  launch_phase1_forward(p, stream_of(ctx));
}

const char* attn_res_merge_forward_refuses(const AttnResMergeForward& args) {
  return refuses(args.mean.dtype, args.mean.size(1));
}

void attn_res_merge_forward(OpContext& ctx, const AttnResMergeForward& args) {
  if (args.mean.num_elements() == 0) return;
  MergeForwardParams p{};
  p.mean = rows_of(args.mean), p.partial = rows_of(args.partial), p.delta = rows_of(args.delta);
  p.partial_sum = rows_of(args.partial_sum), p.h = rows_of(args.h), p.y = rows_of(args.y);
  p.lse = floats(args.lse);
  p.query = vectors_of(args.query), p.norm_weight = vector_of(args.norm_weight);
  p.partial_rstd = floats(args.partial_rstd), p.partial_logit = floats(args.partial_logit);
  p.lse_total = floats(args.lse_total), p.h_rstd = floats(args.h_rstd);
  p.eps = static_cast<float>(args.eps), p.norm_eps = static_cast<float>(args.norm_eps);
  p.tokens = args.mean.size(0), p.dim = static_cast<int>(args.mean.size(1));
  p.is_bf16 = args.mean.dtype == DType::bf16;
  p.is_vector = VectorCheck(args.mean.dtype,
                            args.mean.size(1))(args.mean)(args.partial)(args.delta)(args.partial_sum)(args.h)(args.y)
                    .fits();
  launch_merge_forward(p, stream_of(ctx));
}

const char* attn_res_merge_backward_refuses(const AttnResMergeBackward& args) {
  return refuses(args.h.dtype, args.h.size(1));
}

void attn_res_merge_backward(OpContext& ctx, const AttnResMergeBackward& args) {
  if (args.h.num_elements() == 0) return;
  const int64_t tokens = args.h.size(0), dim = args.h.size(1);
  MergeBackwardParams p{};
  p.h = rows_of(args.h), p.dy = rows_of(args.dy), p.partial = rows_of(args.partial), p.dh = rows_of(args.dh);
  p.dh_is_bf16 = args.dh.dtype == DType::bf16;
  if (args.partial) {
    p.dpartial = rows_of(args.dpartial), p.dpartial_is_bf16 = args.dpartial.dtype == DType::bf16;
    p.accumulate = args.dpartial_mode == GradMode::accumulate;
  }
  p.h_rstd = floats(args.h_rstd), p.partial_rstd = floats(args.partial_rstd);
  p.partial_logit = floats(args.partial_logit), p.lse_total = floats(args.lse_total);
  p.dh_dot_h = floats(args.dh_dot_h);
  p.query = vectors_of(args.query), p.norm_weight = vector_of(args.norm_weight);
  p.num_blocks = merge_backward_blocks(tokens);
  p.partials = floats(ctx.scratch.take(DType::f32, {p.num_blocks, 2, dim}));
  p.tokens = tokens, p.dim = static_cast<int>(dim);
  p.is_bf16 = args.h.dtype == DType::bf16;
  VectorCheck vectors(args.h.dtype, dim);
  vectors(args.h)(args.dy)(args.partial)(args.dh);
  if (args.partial) vectors(args.dpartial);
  p.is_vector = vectors.fits();
  launch_merge_backward(p, stream_of(ctx));
  ColumnSums sums{};
  sums.outputs[0] = plain_output(args.dnorm_weight);
  if (args.partial) sums.outputs[1] = query_output(args.query, args.dquery);
  sums.partials = p.partials, sums.num_blocks = p.num_blocks, sums.block_stride = 2 * dim;
  sums.num_outputs = args.partial ? 2 : 1, sums.dim = p.dim;
  launch_column_sums(sums, stream_of(ctx));
}

const char* attn_res_phase1_backward_refuses(const AttnResPhase1Backward& args) {
  return refuses(args.sources[0].dtype, args.sources[0].size(1), args.sources.size(), args.queries.size());
}

void attn_res_phase1_backward(OpContext& ctx, const AttnResPhase1Backward& args) {
  const TensorView& first = args.sources[0];
  if (first.num_elements() == 0) return;
  const int64_t tokens = first.size(0), dim = first.size(1);
  const size_t num_queries = args.queries.size();
  Phase1BackwardParams p{};
  for (size_t j = 0; j < args.sources.size(); ++j) {
    p.sources[j] = rows_of(args.sources[j]), p.dsources[j] = rows_of(args.dsources[j]);
    p.accumulate[j] = args.dsource_modes[j] == GradMode::accumulate;
  }
  ColumnSums sums{};
  for (size_t q = 0; q < num_queries; ++q) {
    p.dh[q] = rows_of(args.dh[q]);
    p.lse_total[q] = floats(args.lse_total[q]), p.dh_dot_h[q] = floats(args.dh_dot_h[q]);
    sums.outputs[q] = query_output(args.queries[q], args.dqueries[q]);
  }
  p.dh_is_bf16 = args.dh[0].dtype == DType::bf16;
  weight_queries(ctx, args.queries, dim, p);
  p.rstd = floats(args.rstd), p.rstd_stride = args.rstd.stride(0);
  p.logit = floats(args.logit), p.logit_query_stride = args.logit.stride(0);
  p.logit_source_stride = args.logit.stride(1);
  p.tokens = tokens, p.dim = static_cast<int>(dim);
  p.num_sources = static_cast<int>(args.sources.size()), p.num_queries = static_cast<int>(num_queries);
  p.is_bf16 = first.dtype == DType::bf16;
  p.is_vector = VectorCheck(first.dtype, dim)(args.sources)(args.dh)(args.dsources).fits();
  p.num_partials = phase1_backward_partials(p);
  p.partials = floats(ctx.scratch.take(DType::f32, {p.num_partials, static_cast<int64_t>(num_queries), dim}));
  p.partial_stride = static_cast<int64_t>(num_queries) * dim;
  launch_phase1_backward(p, stream_of(ctx));
  sums.partials = p.partials, sums.num_blocks = p.num_partials, sums.num_outputs = p.num_queries, sums.dim = p.dim;
  sums.block_stride = p.partial_stride;
  launch_column_sums(sums, stream_of(ctx));
}

const char* attn_res_depth_weights_refuses(const AttnResDepthWeights& args) {
  return args.logit.dtype == DType::f64 ? "fp64 runs on the CPU" : nullptr;
}

void attn_res_depth_weights(OpContext& ctx, const AttnResDepthWeights& args) {
  const auto count = static_cast<int64_t>(args.weights.size());
  const TensorView means = ctx.scratch.take(DType::f64, {count + 2});
  DepthWeightsParams p{};
  p.logit = floats(args.logit), p.logit_stride = args.logit.stride(0);
  p.partial_logit = floats(args.partial_logit), p.lse_total = floats(args.lse_total);
  p.tokens = args.logit.size(1), p.num_sources = static_cast<int>(args.logit.size(0));
  p.num_weights = static_cast<int>(count);
  p.means = static_cast<double*>(means.data);
  launch_depth_weights(p, stream_of(ctx));
  const HostCopy copy(means, ctx.stream);
  const double* const found = copy->as<double>();
  std::copy_n(found, count, args.weights.begin());
  *args.entropy = found[count];
  *args.largest_weight = found[count + 1];
}

const char* attn_res_source_cosines_refuses(const AttnResSourceCosines& args) {
  if (args.sources[0].dtype == DType::f64) return "fp64 runs on the CPU";
  return args.sources.size() > static_cast<size_t>(attn_res_max_sources) + 1 ? "more than 129 sources" : nullptr;
}

void attn_res_source_cosines(OpContext& ctx, const AttnResSourceCosines& args) {
  const auto count = static_cast<int64_t>(args.cosines.size());
  if (count == 0) return;
  const TensorView cosines = ctx.scratch.take(DType::f64, {count});
  SourceCosinesParams p{};
  for (size_t i = 0; i < args.sources.size(); ++i) p.sources[i] = rows_of(args.sources[i]);
  const int64_t tokens = args.sources[0].size(0);
  p.token_step = std::max<int64_t>(1, (tokens + args.num_tokens - 1) / args.num_tokens);
  p.num_tokens = (tokens + p.token_step - 1) / p.token_step;
  p.dim = static_cast<int>(args.sources[0].size(1)), p.num_sources = static_cast<int>(args.sources.size());
  p.is_bf16 = args.sources[0].dtype == DType::bf16;
  p.cosines = static_cast<double*>(cosines.data);
  launch_source_cosines(p, stream_of(ctx));
  const HostCopy found(cosines, ctx.stream);
  std::copy_n(found->as<double>(), count, args.cosines.begin());
}

}  // namespace lamina::ops::cuda
