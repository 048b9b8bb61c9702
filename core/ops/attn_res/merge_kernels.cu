// The per-sublayer half of the Attention Residuals read: the merge with the open partial sum, fused with the residual addition before
// and the PreNorm after it, and its backward.
//
// Limit: bytes. Forward reads mean, partial and delta and writes partial_sum, h and y, each once; backward reads h, dy, p and (to
// accumulate) dpartial, and writes dh and dpartial. One block holds a token's row in registers from the first load to the last store, so
// nothing is read twice; w (.) g and the norm's weight stay in registers over all tokens of a block. While a token is reduced and written
// the loads of the block's next token are under way. Sums over tokens stay in registers until the block ends.
#include "core/ops/attn_res/kernel_row.h"
#include "core/ops/attn_res/kernels.h"

namespace lamina::ops::cuda {
namespace {

// Rows too long for the registers: neither the next token nor the weights are kept, but read when they are needed.
template <int E>
constexpr bool is_resident = E <= 8;
template <int VEC, int E>
constexpr bool reads_ahead = is_resident<E>&& VEC > 1;
template <int THREADS, int blocks>
constexpr int resident_blocks = THREADS == attn_res_few_threads ? blocks : 1;

template <class T, int VEC, int E>
struct MergeInputs {
  RowPacks<T, VEC, E> mean, partial, delta;
  float lse;
};

template <class T, int VEC, int E, bool has_partial>
__device__ __forceinline__ void load(MergeInputs<T, VEC, E>& in, const MergeForwardParams& p, int64_t token) {
  load_packs<VEC, E>(in.mean, row_of<const T>(p.mean, token), p.dim);
  if constexpr (has_partial) {
    load_packs<VEC, E>(in.partial, row_of<const T>(p.partial, token), p.dim);
    if (p.delta.data != nullptr) load_packs<VEC, E>(in.delta, row_of<const T>(p.delta, token), p.dim);
  }
  in.lse = p.lse[token];
}

// p of this token: the sum with delta is stored, and used as stored. It stays in the packs of `in.partial`: between uses rows are
// kept as they are in memory, which takes half the registers.
template <class T, int VEC, int E>
__device__ __forceinline__ void add_delta(MergeInputs<T, VEC, E>& in, const MergeForwardParams& p, int64_t token) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      T& x = in.partial.at[k].at[i];
      x = from_float<T>(to_float(x) + to_float(in.delta.at[k].at[i]));
    }
  }
  store_packs<VEC, E>(row_of<T>(p.partial_sum, token), in.partial, p.dim);
}

template <class T, int VEC, int E, int THREADS, bool has_partial>
__global__ void __launch_bounds__(THREADS, (resident_blocks < THREADS, sizeof(T) == 2 ? 3 : 2 >))
    merge_forward_kernel(const MergeForwardParams p) {
  __shared__ float shared[2 * 2 * max_row_warps];
  int turn = 0;
  const float over_dim = 1.0f / static_cast<float>(p.dim);
  float norm_weight[E], weighted[E];
  const auto load_weights = [&] {
    load_vector<VEC>(norm_weight, p.norm_weight, p.dim);
    if constexpr (has_partial) load_weighted<VEC>(weighted, p.query, p.dim);
  };
  if constexpr (is_resident<E>) load_weights();
  int64_t token = blockIdx.x;
  MergeInputs<T, VEC, E> in;
  if (reads_ahead<VEC, E> && token < p.tokens) load<T, VEC, E, has_partial>(in, p, token);
  for (; token < p.tokens; token += gridDim.x) {
    if constexpr (!reads_ahead<VEC, E>) load<T, VEC, E, has_partial>(in, p, token);
    if constexpr (!is_resident<E>) load_weights();
    MergeInputs<T, VEC, E> now = in;
    float h[E], open[E], lse = now.lse;
    if (has_partial && p.delta.data != nullptr) add_delta<T, VEC, E>(now, p, token);
    if (reads_ahead<VEC, E> && token + gridDim.x < p.tokens) load<T, VEC, E, has_partial>(in, p, token + gridDim.x);
    if constexpr (has_partial) {
      unpack<VEC>(open, now.partial);
      float sums[2] = {dot(open, open), dot(open, weighted)};
      block_sums<2>(sums, shared, turn);
      const float rstd = rsqrtf(sums[0] * over_dim + p.eps), logit = rstd * sums[1];
      const float a = 1.0f / (1.0f + expf(lse - logit));
      unpack<VEC>(h, now.mean);
      unpack<VEC>(open, now.partial);
#pragma unroll
      for (int i = 0; i < E; ++i) h[i] = fmaf(a, open[i], (1.0f - a) * h[i]);
      if (threadIdx.x == 0) {
        p.partial_rstd[token] = rstd;
        p.partial_logit[token] = logit;
      }
      lse = fmaxf(lse, logit) + log1pf(expf(-fabsf(lse - logit)));
    } else {
      unpack<VEC>(h, now.mean);
    }
    store_row<VEC>(row_of<T>(p.h, token), h, p.dim);
    float square[1] = {dot(h, h)};
    block_sums<2>(square, shared, turn);
    const float h_rstd = rsqrtf(square[0] * over_dim + p.norm_eps);
#pragma unroll
    for (int i = 0; i < E; ++i) h[i] *= h_rstd * norm_weight[i];
    store_row<VEC>(row_of<T>(p.y, token), h, p.dim);
    if (threadIdx.x == 0) {
      p.lse_total[token] = lse;
      p.h_rstd[token] = h_rstd;
    }
  }
}

template <class T, int VEC, int E>
struct MergeBackwardInputs {
  RowPacks<T, VEC, E> h, dy, partial;
  float h_rstd, partial_rstd, partial_logit, lse_total;
};

template <class T, int VEC, int E, bool has_partial>
__device__ __forceinline__ void load(MergeBackwardInputs<T, VEC, E>& in, const MergeBackwardParams& p, int64_t token) {
  load_packs<VEC, E>(in.h, row_of<const T>(p.h, token), p.dim);
  load_packs<VEC, E>(in.dy, row_of<const T>(p.dy, token), p.dim);
  in.h_rstd = p.h_rstd[token];
  if constexpr (has_partial) {
    load_packs<VEC, E>(in.partial, row_of<const T>(p.partial, token), p.dim);
    in.partial_rstd = p.partial_rstd[token];
    in.partial_logit = p.partial_logit[token];
    in.lse_total = p.lse_total[token];
  }
}

// What a block has summed over its tokens.
template <int VEC, int E>
__device__ __forceinline__ void leave_sums(const MergeBackwardParams& p, int which, const float (&x)[E]) {
  float* const out = p.partials + (static_cast<int64_t>(blockIdx.x) * 2 + which) * p.dim;
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const int column = first_column<VEC>(k) + i;
      if (column < p.dim) out[column] = x[k * VEC + i];
    }
  }
}

// All four products of the row are summed together, over what is in registers:
//   <dh, h> = h_rstd (<dx, h> - projection <h, h>) and <dh, p> likewise, with dx = dy norm_weight.
template <class T, int VEC, int E, int THREADS, bool has_partial>
__global__ void __launch_bounds__(THREADS, (resident_blocks<THREADS, 2>))
    merge_backward_kernel(const MergeBackwardParams p) {
  __shared__ float shared[2 * 4 * max_row_warps];
  int turn = 0;
  const float over_dim = 1.0f / static_cast<float>(p.dim);
  float norm_weight[E], weighted[E], norm_sum[E] = {}, weighted_sum[E] = {};
  const auto load_weights = [&] {
    load_vector<VEC>(norm_weight, p.norm_weight, p.dim);
    if constexpr (has_partial) load_weighted<VEC>(weighted, p.query, p.dim);
  };
  if constexpr (is_resident<E>) load_weights();
  int64_t token = blockIdx.x;
  MergeBackwardInputs<T, VEC, E> in;
  if (reads_ahead<VEC, E> && token < p.tokens) load<T, VEC, E, has_partial>(in, p, token);
  for (; token < p.tokens; token += gridDim.x) {
    if constexpr (!reads_ahead<VEC, E>) load<T, VEC, E, has_partial>(in, p, token);
    if constexpr (!is_resident<E>) load_vector<VEC>(norm_weight, p.norm_weight, p.dim);
    const MergeBackwardInputs<T, VEC, E> now = in;
    if (reads_ahead<VEC, E> && token + gridDim.x < p.tokens) load<T, VEC, E, has_partial>(in, p, token + gridDim.x);
    const float h_rstd = now.h_rstd;
    float h[E], dh[E], open[E];
    unpack<VEC>(h, now.h);
    unpack<VEC>(dh, now.dy);
#pragma unroll
    for (int i = 0; i < E; ++i) {
      norm_sum[i] = fmaf(dh[i] * h[i], h_rstd, norm_sum[i]);
      dh[i] *= norm_weight[i];
    }
    float sums[4] = {dot(dh, h), dot(h, h), 0.0f, 0.0f};
    if constexpr (has_partial) {
      unpack<VEC>(open, now.partial);
      sums[2] = dot(dh, open), sums[3] = dot(h, open);
    }
    block_sums<4>(sums, shared, turn);
    const float projection = sums[0] * h_rstd * h_rstd * over_dim;
    const float dh_dot_h = h_rstd * (sums[0] - projection * sums[1]);
    unpack<VEC>(h, now.h);
    unpack<VEC>(dh, now.dy);
#pragma unroll
    for (int i = 0; i < E; ++i) dh[i] = h_rstd * (dh[i] * norm_weight[i] - projection * h[i]);
    store_row_of<VEC>(p.dh, p.dh_is_bf16, token, dh, p.dim);
    if (threadIdx.x == 0) p.dh_dot_h[token] = dh_dot_h;
    if constexpr (has_partial) {
      unpack<VEC>(open, now.partial);
      const float rstd = now.partial_rstd, logit = now.partial_logit;
      const float a = expf(logit - now.lse_total), s = a * (h_rstd * (sums[2] - projection * sums[3]) - dh_dot_h);
      if constexpr (!is_resident<E>) load_weighted<VEC>(weighted, p.query, p.dim);
      const float along_query = s * rstd, along_open = -s * logit * rstd * rstd * over_dim;
      if (p.accumulate)
        load_row_of<VEC>(h, p.dpartial, p.dpartial_is_bf16, token, p.dim);
      else
#pragma unroll
        for (int i = 0; i < E; ++i) h[i] = 0.0f;
#pragma unroll
      for (int i = 0; i < E; ++i) {
        h[i] += fmaf(a, dh[i], fmaf(along_query, weighted[i], along_open * open[i]));
        weighted_sum[i] = fmaf(along_query, open[i], weighted_sum[i]);
      }
      store_row_of<VEC>(p.dpartial, p.dpartial_is_bf16, token, h, p.dim);
    }
  }
  leave_sums<VEC>(p, 0, norm_sum);
  if constexpr (has_partial) leave_sums<VEC>(p, 1, weighted_sum);
}

__global__ void __launch_bounds__(256) weighted_queries_kernel(const WeightedQueries p) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const QueryVectors& query = p.queries[blockIdx.y];
  if (column < p.dim)
    p.out[blockIdx.y * p.dim + column] = element_of(query.query, column) * element_of(query.norm_weight, column);
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < attn_res_work_counters) p.work_counters[threadIdx.x] = 0;
}

// 32 columns by 16 threads that share the blocks' sums.
constexpr int sum_threads = 16;
__global__ void __launch_bounds__(warp_size* sum_threads) column_sums_kernel(const ColumnSums p) {
  __shared__ float shared[sum_threads][warp_size + 1];
  const int lane = static_cast<int>(threadIdx.x), part = static_cast<int>(threadIdx.y);
  const int column = static_cast<int>(blockIdx.x) * warp_size + lane;
  float sum = 0.0f;
  if (column < p.dim) {
    for (int block = part; block < p.num_blocks; block += sum_threads)
      sum += p.partials[block * p.block_stride + static_cast<int64_t>(blockIdx.y) * p.dim + column];
  }
  shared[part][lane] = sum;
  __syncthreads();
  if (part != 0 || column >= p.dim) return;
#pragma unroll
  for (int other = 1; other < sum_threads; ++other) sum += shared[other][lane];
  const ColumnSums::Output& out = p.outputs[blockIdx.y];
  if (out.query.query.data == nullptr) {
    out.sums.query[column] += sum;
  } else {
    out.sums.query[column] += sum * element_of(out.query.norm_weight, column);
    out.sums.norm_weight[column] += sum * element_of(out.query.query, column);
  }
}

__device__ __forceinline__ float log_weight(const DepthWeightsParams& p, int which, int64_t token) {
  const float* logit = which < p.num_sources ? p.logit + which * p.logit_stride : p.partial_logit;
  return logit[token] - p.lse_total[token];
}

// Block w sums weight w; the next one the entropy, the last one the largest weight.
__global__ void __launch_bounds__(1024) depth_weights_kernel(const DepthWeightsParams p) {
  __shared__ double shared[1024];
  const int which = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t token = thread; token < p.tokens; token += 1024) {
    if (which < p.num_weights) {
      sum += expf(log_weight(p, which, token));
      continue;
    }
    float entropy = 0, largest = 0;
    for (int source = 0; source < p.num_weights; ++source) {
      const float of_log = log_weight(p, source, token), weight = expf(of_log);
      entropy -= weight * of_log;
      largest = fmaxf(largest, weight);
    }
    sum += which == p.num_weights ? entropy : largest;
  }
  shared[thread] = sum;
  for (int half = 512; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] += shared[thread + half];
  }
  if (thread == 0) p.means[which] = p.tokens == 0 ? 0.0 : shared[0] / static_cast<double>(p.tokens);
}

// A block per pair of sources, a warp per token.
template <class T>
__global__ void __launch_bounds__(256) source_cosines_kernel(const SourceCosinesParams p) {
  __shared__ double shared[256 / warp_size];
  int first = 0, second = static_cast<int>(blockIdx.x) + 1;
  while (second >= p.num_sources) {
    ++first;
    second += first + 1 - p.num_sources;
  }
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  double sum = 0;
  for (int64_t i = warp; i < p.num_tokens; i += 256 / warp_size) {
    const T* a = row_of<const T>(p.sources[first], i * p.token_step);
    const T* b = row_of<const T>(p.sources[second], i * p.token_step);
    float dot = 0, a_square = 0, b_square = 0;
    for (int column = lane; column < p.dim; column += warp_size) {
      const float x = to_float(a[column]), y = to_float(b[column]);
      dot += x * y;
      a_square += x * x;
      b_square += y * y;
    }
    dot = warp_sum(dot);
    a_square = warp_sum(a_square);
    b_square = warp_sum(b_square);
    if (a_square > 0 && b_square > 0) sum += dot / (sqrtf(a_square) * sqrtf(b_square));
  }
  if (lane == 0) shared[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (const double part : shared) sum += part;
  p.cosines[blockIdx.x] = p.num_tokens == 0 ? 0.0 : sum / static_cast<double>(p.num_tokens);
}

}  // namespace

void launch_weighted_queries(const WeightedQueries& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.dim, 256), static_cast<unsigned>(p.num_queries));
  launch(weighted_queries_kernel, grid, dim3(256), 0, stream, p);
}

// Blocks that are resident together; more would only make more prologues.
void launch_merge_forward(const MergeForwardParams& p, cudaStream_t stream) {
  dispatch_row(p.is_bf16, p.is_vector, p.dim, [&]<class T, int VEC, int E, int THREADS>() {
    const unsigned threads = row_threads(p.dim, E);
    const int64_t resident = int64_t{num_multiprocessors()} * (threads <= 128 ? 8 : threads <= 320 ? 3 : 2);
    const auto blocks = static_cast<unsigned>(p.tokens < resident ? p.tokens : resident);
    const auto kernel = p.partial.data != nullptr ? merge_forward_kernel<T, VEC, E, THREADS, true>
                                                  : merge_forward_kernel<T, VEC, E, THREADS, false>;
    launch(kernel, dim3(blocks), dim3(threads), 0, stream, p);
  });
}

int merge_backward_blocks(int64_t tokens) {
  const int64_t most = int64_t{2} * num_multiprocessors();
  return static_cast<int>(tokens < most ? tokens : most);
}
void launch_merge_backward(const MergeBackwardParams& p, cudaStream_t stream) {
  dispatch_row(p.is_bf16, p.is_vector, p.dim, [&]<class T, int VEC, int E, int THREADS>() {
    const auto kernel = p.partial.data != nullptr ? merge_backward_kernel<T, VEC, E, THREADS, true>
                                                  : merge_backward_kernel<T, VEC, E, THREADS, false>;
    launch(kernel, dim3(static_cast<unsigned>(p.num_blocks)), dim3(row_threads(p.dim, E)), 0, stream, p);
  });
}

void launch_column_sums(const ColumnSums& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.dim, warp_size), static_cast<unsigned>(p.num_outputs));
  launch(column_sums_kernel, grid, dim3(warp_size, sum_threads), 0, stream, p);
}

void launch_depth_weights(const DepthWeightsParams& p, cudaStream_t stream) {
  launch(depth_weights_kernel, dim3(static_cast<unsigned>(p.num_weights) + 2), dim3(1024), 0, stream, p);
}

void launch_source_cosines(const SourceCosinesParams& p, cudaStream_t stream) {
  const auto pairs = static_cast<unsigned>(p.num_sources * (p.num_sources - 1) / 2);
  if (p.is_bf16)
    launch(source_cosines_kernel<__nv_bfloat16>, dim3(pairs), dim3(256), 0, stream, p);
  else
    launch(source_cosines_kernel<float>, dim3(pairs), dim3(256), 0, stream, p);
}

}  // namespace lamina::ops::cuda
