// Phase 1 of the Attention Residuals read and its backward, for every shape and dtype. Shapes of bf16 that fit them take the tensor
// cores' kernels (tensor_kernels.cu) instead; this one serves the read of Full AttnRes (one query, tens of sources), fp32, odd
// extents and what is left.
//
// Limit of the forward: bytes, each source once from memory. A block has one token. Sources come in chunks that stay in registers from
// the products that give their logits to the weighted sum: an online softmax over chunks, with one barrier each, so a chunk is read once
// per 2 queries, the later times from the caches.
// Limit of the backward: with Q queries 4 n Q dim products against 2 (n + Q) dim + 4 n dim bytes; products, for Q above about 4.
#include "core/ops/attn_res/kernel_row.h"
#include "core/ops/attn_res/kernels.h"

namespace lamina::ops::cuda {
namespace {

template <class T, int THREADS>
constexpr int resident_blocks = THREADS == attn_res_few_threads && sizeof(T) == 2 ? 2 : 1;

// One chunk's partial products: per warp C * Q of them, then C squares.
template <int C, int Q>
constexpr int chunk_values = C* Q + C;

// Sums over the block of the chunk's products, up to 8 at a time over the warp. Lane l of every warp receives `product` of source
// l / Q % C and query l % Q, and `square` of source l % C.
template <int VEC, int E, int C, int Q, class T>
__device__ __forceinline__ void chunk_products(const RowPacks<T, VEC, E> (&packs)[C], const float (&weighted)[Q][E],
                                               float* half, float& product, float& square) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int num_warps = static_cast<int>(blockDim.x) / warp_size;
  constexpr int count = C * Q < 8 ? C * Q : 8, group = count / Q;  // values and sources at a time
  float squares[C];
#pragma unroll
  for (int first = 0; first < C; first += group) {
    float products[count];
#pragma unroll
    for (int c = 0; c < group; ++c) {
      float v[E];
      unpack<VEC>(v, packs[first + c]);
      squares[first + c] = dot(v, v);
#pragma unroll
      for (int q = 0; q < Q; ++q) products[c * Q + q] = dot(v, weighted[q]);
    }
    const float sum = warp_sums(products);
    if (lane < count) half[warp * chunk_values<C, Q> + first * Q + lane] = sum;
  }
  const float sum = warp_sums(squares);
  if (lane < C) half[warp * chunk_values<C, Q> + C * Q + lane] = sum;
  __syncthreads();
  product = 0.0f, square = 0.0f;
  for (int from = 0; from < num_warps; ++from) {
    product += half[from * chunk_values<C, Q> + lane % (C * Q)];
    square += half[from * chunk_values<C, Q> + C * Q + lane % C];
  }
}

template <class T, int VEC, int E, int THREADS, int C, int Q>
__global__ void __launch_bounds__(THREADS, (resident_blocks<T, THREADS>))
    phase1_forward_kernel(const Phase1ForwardParams p) {
  static_assert(C * Q <= warp_size && (C * Q) % (C * Q < 8 ? C * Q : 8) == 0);
  __shared__ float shared[2][max_row_warps * chunk_values<C, Q>];
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const float over_dim = 1.0f / static_cast<float>(p.dim);
  int turn = 0;
  for (int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    for (int first_query = 0; first_query < p.num_queries; first_query += Q) {
      float weighted[Q][E], mean[Q][E] = {};
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const int query = min(first_query + q, p.num_queries - 1);
        load_row<VEC>(weighted[q], p.weighted + static_cast<int64_t>(query) * p.dim, p.dim);
      }
      float largest = -INFINITY, sum = 0.0f;  // of query lane % Q
      for (int first = 0; first < p.num_sources; first += C) {
        RowPacks<T, VEC, E> packs[C];
#pragma unroll
        for (int c = 0; c < C; ++c) {
          packs[c] = {};
          if (first + c < p.num_sources)
            load_packs<VEC, E>(packs[c], row_of<const T>(p.sources[first + c], token), p.dim);
        }
        float product, square;
        chunk_products<VEC>(packs, weighted, shared[turn], product, square);
        turn ^= 1;
        const float rstd = rsqrtf(square * over_dim + p.eps);
        const int source = first + lane / Q % C, query = first_query + lane % Q;
        float logit = product * __shfl_sync(full_warp, rstd, lane / Q % C);
        if (threadIdx.x < C * Q && source < p.num_sources && query < p.num_queries)
          p.logit[query * p.logit_query_stride + source * p.logit_source_stride + token] = logit;
        if (threadIdx.x < C && first_query == 0 && first + lane < p.num_sources)
          p.rstd[(first + lane) * p.rstd_stride + token] = rstd;
        if (source >= p.num_sources) logit = -INFINITY;
        float chunk_largest = logit;
#pragma unroll
        for (int offset = Q; offset < C * Q; offset *= 2)
          chunk_largest = fmaxf(chunk_largest, __shfl_xor_sync(full_warp, chunk_largest, offset));
        const float before = largest;
        largest = fmaxf(largest, chunk_largest);
        const float weight = expf(logit - largest), keep = expf(before - largest);
        float chunk_sum = weight;
#pragma unroll
        for (int offset = Q; offset < C * Q; offset *= 2) chunk_sum += __shfl_xor_sync(full_warp, chunk_sum, offset);
        sum = sum * keep + chunk_sum;
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          const float factor = __shfl_sync(full_warp, keep, q);
#pragma unroll
          for (int i = 0; i < E; ++i) mean[q][i] *= factor;
        }
#pragma unroll
        for (int c = 0; c < C; ++c) {
          float v[E];
          unpack<VEC>(v, packs[c]);
#pragma unroll
          for (int q = 0; q < Q; ++q) {
            const float factor = __shfl_sync(full_warp, weight, c * Q + q);
#pragma unroll
            for (int i = 0; i < E; ++i) mean[q][i] = fmaf(factor, v[i], mean[q][i]);
          }
        }
      }
      if (threadIdx.x < Q && first_query + lane < p.num_queries)
        p.lse[(first_query + lane) * p.lse_stride + token] = largest + logf(sum);
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const float factor = 1.0f / __shfl_sync(full_warp, sum, q);
        if (first_query + q >= p.num_queries) continue;
#pragma unroll
        for (int i = 0; i < E; ++i) mean[q][i] *= factor;
        store_row<VEC>(row_of<T>(p.mean[first_query + q], token), mean[q], p.dim);
      }
    }
  }
}

// Backward. The coefficients of a token, [num_sources, num_queries] each: a, and s rstd; then per source rstd^2 / dim sum_q s logit.
struct Coefficients {
  float *a, *b, *c;
};

// <dh_q, v_j> of 8 sources and one query: lane l of every warp receives that of source first + l % 8.
template <class T, int VEC, int E, int C>
__device__ __forceinline__ float chunk_products(const RowPacks<T, VEC, E> (&packs)[C], const float (&dh)[E],
                                                float* half) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int num_warps = static_cast<int>(blockDim.x) / warp_size;
  float products[C];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    float v[E];
    unpack<VEC>(v, packs[c]);
    products[c] = dot(v, dh);
  }
  const float sum = warp_sums(products);
  if (lane < C) half[warp * C + lane] = sum;
  __syncthreads();
  float total = 0.0f;
  for (int from = 0; from < num_warps; ++from) total += half[from * C + lane % C];
  return total;
}

template <class T, int VEC, int E, int C>
__device__ __forceinline__ void load_chunk(RowPacks<T, VEC, E> (&packs)[C], const Phase1BackwardParams& p, int first,
                                           int64_t token) {
#pragma unroll
  for (int c = 0; c < C; ++c) {
    packs[c] = {};
    if (first + c < p.num_sources) load_packs<VEC, E>(packs[c], row_of<const T>(p.sources[first + c], token), p.dim);
  }
}

template <class T, int VEC, int E, int C>
__device__ __forceinline__ void find_coefficients(const Phase1BackwardParams& p, const Coefficients& out, int64_t token,
                                                  float* shared, int& turn) {
  const int num_queries = p.num_queries;
  for (int first = 0; first < p.num_sources; first += C) {
    RowPacks<T, VEC, E> packs[C];
    load_chunk(packs, p, first, token);
    float along_source = 0.0f;
    const int source = first + static_cast<int>(threadIdx.x);
    const bool mine = threadIdx.x < C && source < p.num_sources;
    const float rstd = mine ? p.rstd[source * p.rstd_stride + token] : 0.0f;
    for (int query = 0; query < num_queries; ++query) {
      float dh[E];
      load_row_of<VEC>(dh, p.dh[query], p.dh_is_bf16, token, p.dim);
      const float product = chunk_products(packs, dh, shared + turn * C * max_row_warps);
      turn ^= 1;
      if (!mine) continue;
      const float logit = p.logit[query * p.logit_query_stride + source * p.logit_source_stride + token];
      const float a = expf(logit - p.lse_total[query][token]), s = a * (product - p.dh_dot_h[query][token]);
      out.a[source * num_queries + query] = a;
      out.b[source * num_queries + query] = s * rstd;
      along_source = fmaf(s, logit, along_source);
    }
    if (mine) out.c[source] = along_source * rstd * rstd / static_cast<float>(p.dim);
  }
}

template <class T, int VEC, int E, int THREADS, int C>
__global__ void __launch_bounds__(THREADS, (resident_blocks<T, THREADS>))
    phase1_backward_kernel(const Phase1BackwardParams p) {
  constexpr int most = E > 8 ? 2 : 4;  // sources whose gradients are summed together
  LAMINA_DYNAMIC_SHARED(float, shared);
  const int num_queries = p.num_queries;
  float* const halves = shared;
  const Coefficients coefficients{shared + 2 * C * max_row_warps,
                                  shared + 2 * C * max_row_warps + p.num_sources * num_queries,
                                  shared + 2 * C * max_row_warps + 2 * p.num_sources * num_queries};
  // The sums over this block's tokens: each thread keeps those of its columns, where no other looks.
  float* const sums = p.partials + blockIdx.x * p.partial_stride;
  int turn = 0;
  for (int query = 0; query < num_queries; ++query) {
    const float zeros[E] = {};
    store_row<VEC>(sums + static_cast<int64_t>(query) * p.dim, zeros, p.dim);
  }
  for (int64_t token = blockIdx.x; token < p.tokens; token += gridDim.x) {
    __syncthreads();  // the coefficients of the token before have been used
    find_coefficients<T, VEC, E, C>(p, coefficients, token, halves, turn);
    __syncthreads();
    for (int first = 0; first < p.num_sources; first += most) {
      float gradient[most][E];
      RowPacks<T, VEC, E> packs[most];
      load_chunk(packs, p, first, token);
#pragma unroll
      for (int c = 0; c < most; ++c) {
        const int source = min(first + c, p.num_sources - 1);
        unpack<VEC>(gradient[c], packs[c]);
        const float factor = -coefficients.c[source];
#pragma unroll
        for (int i = 0; i < E; ++i) gradient[c][i] *= factor;
      }
      for (int query = 0; query < num_queries; ++query) {
        float row[E], sum[E];
        load_row<VEC>(sum, sums + static_cast<int64_t>(query) * p.dim, p.dim);
        load_row_of<VEC>(row, p.dh[query], p.dh_is_bf16, token, p.dim);
#pragma unroll
        for (int c = 0; c < most; ++c) {
          const int source = min(first + c, p.num_sources - 1);  // beyond the last the packs are zero
          const float a = coefficients.a[source * num_queries + query],
                      b = coefficients.b[source * num_queries + query];
          float v[E];
          unpack<VEC>(v, packs[c]);
#pragma unroll
          for (int i = 0; i < E; ++i) {
            gradient[c][i] = fmaf(a, row[i], gradient[c][i]);
            sum[i] = fmaf(b, v[i], sum[i]);
          }
        }
        store_row<VEC>(sums + static_cast<int64_t>(query) * p.dim, sum, p.dim);
        load_row<VEC>(row, p.weighted + static_cast<int64_t>(query) * p.dim, p.dim);
#pragma unroll
        for (int c = 0; c < most; ++c) {
          const float b = coefficients.b[min(first + c, p.num_sources - 1) * num_queries + query];
#pragma unroll
          for (int i = 0; i < E; ++i) gradient[c][i] = fmaf(b, row[i], gradient[c][i]);
        }
      }
#pragma unroll
      for (int c = 0; c < most; ++c) {
        if (first + c >= p.num_sources) break;
        float* const out = row_of<float>(p.dsources[first + c], token);
        if (p.accumulate[first + c]) {
          float before[E];
          load_row<VEC>(before, out, p.dim);
#pragma unroll
          for (int i = 0; i < E; ++i) gradient[c][i] += before[i];
        }
        store_row<VEC>(out, gradient[c], p.dim);
      }
    }
  }
}

template <class T, int VEC, int E, int THREADS, int C, int Q>
void launch_forward(const Phase1ForwardParams& p, cudaStream_t stream) {
  const unsigned threads = row_threads(p.dim, E);
  const int64_t resident = int64_t{num_multiprocessors()} * (threads <= 128 ? 8 : threads <= 320 ? 3 : 2);
  const auto blocks = static_cast<unsigned>(p.tokens < resident ? p.tokens : resident);
  launch(phase1_forward_kernel<T, VEC, E, THREADS, C, Q>, dim3(blocks), dim3(threads), 0, stream, p);
}

}  // namespace

void launch_phase1_forward(const Phase1ForwardParams& p, cudaStream_t stream) {
  if (phase1_forward_fits_tensor_cores(p)) return launch_phase1_forward_tensor_cores(p, stream);
  dispatch_row(p.is_bf16, p.is_vector, p.dim, [&]<class T, int VEC, int E, int THREADS>() {
    if constexpr (E > 8) {
      launch_forward<T, VEC, E, THREADS, 4, 1>(p, stream);
    } else if (p.num_queries == 1) {
      launch_forward<T, VEC, E, THREADS, 4, 1>(p, stream);
    } else {
      launch_forward<T, VEC, E, THREADS, 4, 2>(p, stream);
    }
  });
}

int phase1_backward_partials(const Phase1BackwardParams& p) {
  if (phase1_backward_fits_tensor_cores(p)) return phase1_backward_tiles(p.tokens);
  const int64_t most = int64_t{2} * num_multiprocessors();
  return static_cast<int>(p.tokens < most ? p.tokens : most);
}

void launch_phase1_backward(const Phase1BackwardParams& p, cudaStream_t stream) {
  if (phase1_backward_fits_tensor_cores(p)) return launch_phase1_backward_tensor_cores(p, stream);
  dispatch_row(p.is_bf16, p.is_vector, p.dim, [&]<class T, int VEC, int E, int THREADS>() {
    constexpr int chunk = sizeof(T) * E > 32 ? 2 : sizeof(T) * E > 16 ? 4 : 8;
    const int floats = 2 * chunk * max_row_warps + 2 * p.num_sources * p.num_queries + p.num_sources;
    launch(phase1_backward_kernel<T, VEC, E, THREADS, chunk>, dim3(static_cast<unsigned>(p.num_partials)),
           dim3(row_threads(p.dim, E)), static_cast<size_t>(floats) * sizeof(float), stream, p);
  });
}

}  // namespace lamina::ops::cuda
