// Norms of queries and keys, gates and the gated norm of the output: all elementwise but for sums over a head.
//
// Limit: bytes; every operand is read or written once. A warp has one head of several tokens at a time, whose loads are issued together: a
// head of 128 elements is four per lane. A block serves one head, so what belongs to the head stays in registers; sums over tokens stay there
// too until the block ends, and a second kernel adds up what the blocks left.
#include "core/ops/kda/gate_kernels.h"

#include "core/ops/gpu/partial_sums.h"

namespace lamina::ops::cuda {
namespace {

constexpr int block_warps = 8;

// A head's elements in a warp: E per lane, in packs of VEC that lie 32 packs apart.
template <int VEC>
__device__ __forceinline__ int first_column(int pack) {
  return (pack * warp_size + static_cast<int>(threadIdx.x)) * VEC;
}
template <class T>
__device__ __forceinline__ T* row_of(const HeadRows& rows, int64_t token, int head) {
  return static_cast<T*>(rows.data) + token * rows.token_stride + head * rows.head_stride;
}
template <int VEC, int E, class T>
__device__ __forceinline__ void load(float (&x)[E], const T* row, int dim) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
    const int column = first_column<VEC>(k);
    const auto pack = column < dim ? *reinterpret_cast<const Pack<T, VEC>*>(row + column) : Pack<T, VEC>{};
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[k * VEC + i] = to_float(pack.at[i]);
  }
}
template <int VEC, int E, class T>
__device__ __forceinline__ void store(T* row, const float (&x)[E], int dim) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
    const int column = first_column<VEC>(k);
    if (column >= dim) continue;
    Pack<T, VEC> pack;
#pragma unroll
    for (int i = 0; i < VEC; ++i) pack.at[i] = from_float<T>(x[k * VEC + i]);
    *reinterpret_cast<Pack<T, VEC>*>(row + column) = pack;
  }
}
template <int E>
__device__ __forceinline__ float dot(const float (&a)[E], const float (&b)[E]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < E; ++i) sum = fmaf(a[i], b[i], sum);
  return sum;
}

// Rows that a warp has in flight.
template <int E>
constexpr int row_count = E <= 4 ? 4 : 1;

// body(first): for this warp's groups of `count` tokens.
template <int count, class Body>
__device__ __forceinline__ void each_group(int64_t tokens, Body&& body) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * block_warps * count;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * block_warps + threadIdx.y) * count; first < tokens;
       first += stride)
    body(first);
}

template <class T, int VEC, int E>
__global__ void __launch_bounds__(warp_size* block_warps) l2_forward_kernel(const L2NormParams p) {
  constexpr int count = row_count<E>;
  const int head = static_cast<int>(blockIdx.y), dim = p.shape.dim;
  each_group<count>(p.shape.tokens, [&](int64_t first) {
    float x[count][E];
#pragma unroll
    for (int r = 0; r < count; ++r)
      load<VEC>(x[r], row_of<const T>(p.in, min(first + r, p.shape.tokens - 1), head), dim);
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const float rstd = rsqrtf(warp_sum(dot(x[r], x[r])) + p.eps);
      if (first + r >= p.shape.tokens) continue;
#pragma unroll
      for (int i = 0; i < E; ++i) x[r][i] *= rstd;
      store<VEC>(row_of<T>(p.out, first + r, head), x[r], dim);
      if (threadIdx.x == 0) p.rstd[(first + r) * p.shape.heads + head] = rstd;
    }
  });
}

template <class T, int VEC, int E>
__global__ void __launch_bounds__(warp_size* block_warps) l2_backward_kernel(const L2NormParams p) {
  constexpr int count = row_count<E>;
  const int head = static_cast<int>(blockIdx.y), dim = p.shape.dim;
  each_group<count>(p.shape.tokens, [&](int64_t first) {
    float y[count][E], dy[count][E], rstd[count];
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const int64_t token = min(first + r, p.shape.tokens - 1);
      load<VEC>(y[r], row_of<const T>(p.in, token, head), dim);
      load<VEC>(dy[r], row_of<const T>(p.dy, token, head), dim);
      rstd[r] = p.rstd[token * p.shape.heads + head];
    }
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const float projection = warp_sum(dot(y[r], dy[r]));
      if (first + r >= p.shape.tokens) continue;
#pragma unroll
      for (int i = 0; i < E; ++i) dy[r][i] = rstd[r] * (dy[r][i] - projection * y[r][i]);
      store<VEC>(row_of<T>(p.out, first + r, head), dy[r], dim);
    }
  });
}

__device__ __forceinline__ float softplus(float x) {
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}
__device__ __forceinline__ float exact_sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <class T, int VEC, int E>
__global__ void __launch_bounds__(warp_size* block_warps) gate_forward_kernel(const KdaGateParams p) {
  constexpr int count = row_count<E>;
  const int head = static_cast<int>(blockIdx.y), dim = p.shape.dim, heads = p.shape.heads;
  float bias[E];
  load<VEC>(bias, p.dt_bias + static_cast<int64_t>(head) * dim, dim);
  const float rate = expf(p.a_log[head]);
  each_group<count>(p.shape.tokens, [&](int64_t first) {
    float f[count][E];
#pragma unroll
    for (int r = 0; r < count; ++r)
      load<VEC>(f[r], row_of<const T>(p.f, min(first + r, p.shape.tokens - 1), head), dim);
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const int64_t token = first + r;
      if (token >= p.shape.tokens) continue;
#pragma unroll
      for (int i = 0; i < E; ++i) {
        const float x = f[r][i] + bias[i];
        f[r][i] = p.is_bounded ? p.lower_bound * exact_sigmoid(rate * x) : -rate * softplus(x);
      }
      store<VEC>(p.g + (token * heads + head) * dim, f[r], dim);
      if (threadIdx.x == 0)
        p.beta[token * heads + head] =
            exact_sigmoid(to_float(static_cast<const T*>(p.beta_logits)[token * p.logits_stride + head]));
    }
  });
}

// The warps' sums, in their order, to `out`; contains barriers.
template <int VEC, int E>
__device__ __forceinline__ void leave_sums(float* out, const float (&x)[E], int dim, float* shared) {
#pragma unroll
  for (int k = 0; k < E / VEC; ++k) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      __syncthreads();
      shared[threadIdx.y * warp_size + threadIdx.x] = x[k * VEC + i];
      __syncthreads();
      const int column = first_column<VEC>(k) + i;
      if (threadIdx.y != 0 || column >= dim) continue;
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < block_warps; ++warp) sum += shared[warp * warp_size + threadIdx.x];
      out[column] = sum;
    }
  }
}

template <class T, int VEC, int E>
__global__ void __launch_bounds__(warp_size* block_warps) gate_backward_kernel(const KdaGateParams p) {
  __shared__ float shared[block_warps * warp_size];
  constexpr int count = E <= 4 ? 2 : 1;
  const int head = static_cast<int>(blockIdx.y), dim = p.shape.dim, heads = p.shape.heads;
  float bias[E], bias_sum[E] = {}, rate_sum[1] = {};
  load<VEC>(bias, p.dt_bias + static_cast<int64_t>(head) * dim, dim);
  const float rate = expf(p.a_log[head]);
  each_group<count>(p.shape.tokens, [&](int64_t first) {
    float f[count][E], dg[count][E];
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const int64_t token = min(first + r, p.shape.tokens - 1);
      load<VEC>(f[r], row_of<const T>(p.f, token, head), dim);
      load<VEC>(dg[r], p.dg + (token * heads + head) * dim, dim);
    }
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const int64_t token = first + r;
      if (token >= p.shape.tokens) continue;
#pragma unroll
      for (int i = 0; i < E; ++i) {
        const float x = f[r][i] + bias[i];
        float slope, by_rate;  // of g in x, and in a_log
        if (p.is_bounded) {
          const float s = exact_sigmoid(rate * x);
          slope = p.lower_bound * s * (1.0f - s) * rate, by_rate = slope * x;
        } else {
          slope = -rate * exact_sigmoid(x), by_rate = -rate * softplus(x);
        }
        rate_sum[0] = fmaf(dg[r][i], by_rate, rate_sum[0]);
        f[r][i] = dg[r][i] * slope;
        bias_sum[i] += f[r][i];
      }
      store<VEC>(row_of<T>(p.df, token, head), f[r], dim);
      if (threadIdx.x == 0) {
        const float beta = p.beta[token * heads + head];
        static_cast<T*>(p.dbeta_logits)[token * p.dlogits_stride + head] =
            from_float<T>(p.dbeta[token * heads + head] * beta * (1.0f - beta));
      }
    }
  });
  float* const out = p.partials + static_cast<int64_t>(blockIdx.x) * heads * (dim + 1);
  leave_sums<VEC>(out + static_cast<int64_t>(head) * dim, bias_sum, dim, shared);
  rate_sum[0] = warp_sum(rate_sum[0]);
  leave_sums<1>(out + static_cast<int64_t>(heads) * dim + head, rate_sum, 1, shared);
}

template <class T, int VEC, int E>
__global__ void __launch_bounds__(warp_size* block_warps) norm_forward_kernel(const GatedRmsNormParams p) {
  constexpr int count = row_count<E>;
  const int head = static_cast<int>(blockIdx.y), dim = p.shape.dim;
  float weight[E];
  load<VEC>(weight, p.weight, dim);
  each_group<count>(p.shape.tokens, [&](int64_t first) {
    float o[count][E], gate[count][E];
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const int64_t token = min(first + r, p.shape.tokens - 1);
      load<VEC>(o[r], row_of<const T>(p.o, token, head), dim);
      load<VEC>(gate[r], row_of<const T>(p.gate, token, head), dim);
    }
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const float rstd = rsqrtf(warp_sum(dot(o[r], o[r])) / static_cast<float>(dim) + p.eps);
      if (first + r >= p.shape.tokens) continue;
#pragma unroll
      for (int i = 0; i < E; ++i) o[r][i] = o[r][i] * rstd * weight[i] * sigmoid(gate[r][i]);
      store<VEC>(row_of<T>(p.y, first + r, head), o[r], dim);
      if (threadIdx.x == 0) p.rstd[(first + r) * p.shape.heads + head] = rstd;
    }
  });
}

template <class T, int VEC, int E>
__global__ void __launch_bounds__(warp_size* block_warps) norm_backward_kernel(const GatedRmsNormParams p) {
  __shared__ float shared[block_warps * warp_size];
  constexpr int count = E <= 4 ? 2 : 1;
  const int head = static_cast<int>(blockIdx.y), dim = p.shape.dim;
  float weight[E], weight_sum[E] = {};
  load<VEC>(weight, p.weight, dim);
  each_group<count>(p.shape.tokens, [&](int64_t first) {
    float o[count][E], gate[count][E], dy[count][E], rstd[count];
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const int64_t token = min(first + r, p.shape.tokens - 1);
      load<VEC>(o[r], row_of<const T>(p.o, token, head), dim);
      load<VEC>(gate[r], row_of<const T>(p.gate, token, head), dim);
      load<VEC>(dy[r], row_of<const T>(p.dy, token, head), dim);
      rstd[r] = p.rstd[token * p.shape.heads + head];
    }
#pragma unroll
    for (int r = 0; r < count; ++r) {
      const bool counts = first + r < p.shape.tokens;
      float y[E];
#pragma unroll
      for (int i = 0; i < E; ++i) {
        const float s = sigmoid(gate[r][i]), normed = o[r][i] * rstd[r];
        y[i] = o[r][i] * rstd[r] * weight[i] * s;
        gate[r][i] = dy[r][i] * normed * weight[i] * s * (1.0f - s);
        if (counts) weight_sum[i] = fmaf(dy[r][i] * s, normed, weight_sum[i]);
        dy[r][i] *= s * weight[i];
        o[r][i] = normed;
      }
      const float projection = warp_sum(dot(dy[r], o[r])) / static_cast<float>(dim);
      if (!counts) continue;
#pragma unroll
      for (int i = 0; i < E; ++i) dy[r][i] = rstd[r] * (dy[r][i] - projection * o[r][i]);
      store<VEC>(row_of<T>(p.d_o, first + r, head), dy[r], dim);
      store<VEC>(row_of<T>(p.dgate, first + r, head), gate[r], dim);
      if (p.y.data != nullptr) store<VEC>(row_of<T>(p.y, first + r, head), y, dim);
    }
  });
  leave_sums<VEC>(p.partials + (static_cast<int64_t>(blockIdx.x) * p.shape.heads + head) * dim, weight_sum, dim,
                  shared);
}

// launch<T, VEC, E>(): the narrowest E that a head fits into.
template <class Launch>
void dispatch_heads(const HeadShape& shape, Launch&& launch) {
  const auto with = [&]<class T, int VEC>() {
    if (shape.dim <= 4 * warp_size)
      launch.template operator()<T, VEC, 4>();
    else if (shape.dim <= 8 * warp_size)
      launch.template operator()<T, VEC, 8>();
    else
      launch.template operator()<T, VEC, 32>();
  };
  if (shape.is_bf16)
    shape.is_vector ? with.template operator()<__nv_bfloat16, 4>() : with.template operator()<__nv_bfloat16, 1>();
  else
    shape.is_vector ? with.template operator()<float, 4>() : with.template operator()<float, 1>();
}
// Every group of tokens its own warp; or as many blocks as the sums were made for.
template <int E>
dim3 free_grid(const HeadShape& shape) {
  return dim3(blocks_for(shape.tokens, int64_t{block_warps} * row_count<E>), static_cast<unsigned>(shape.heads));
}
dim3 fixed_grid(const HeadShape& shape, int token_blocks) {
  return dim3(static_cast<unsigned>(token_blocks), static_cast<unsigned>(shape.heads));
}
const dim3 block(warp_size, block_warps);

}  // namespace

int kda_token_blocks(int64_t tokens, int heads) {
  constexpr int enough_blocks = 132 * 8;
  const int64_t useful = (tokens + block_warps - 1) / block_warps, wanted = (enough_blocks + heads - 1) / heads;
  return static_cast<int>(useful < wanted ? useful : wanted);
}

void launch_l2_norm_forward(const L2NormParams& p, cudaStream_t stream) {
  dispatch_heads(p.shape, [&]<class T, int VEC, int E>() {
    launch(l2_forward_kernel<T, VEC, E>, free_grid<E>(p.shape), block, 0, stream, p);
  });
}
void launch_l2_norm_backward(const L2NormParams& p, cudaStream_t stream) {
  dispatch_heads(p.shape, [&]<class T, int VEC, int E>() {
    launch(l2_backward_kernel<T, VEC, E>, free_grid<E>(p.shape), block, 0, stream, p);
  });
}
void launch_kda_gate_forward(const KdaGateParams& p, cudaStream_t stream) {
  dispatch_heads(p.shape, [&]<class T, int VEC, int E>() {
    launch(gate_forward_kernel<T, VEC, E>, free_grid<E>(p.shape), block, 0, stream, p);
  });
}
void launch_kda_gate_backward(const KdaGateParams& p, cudaStream_t stream) {
  dispatch_heads(p.shape, [&]<class T, int VEC, int E>() {
    launch(gate_backward_kernel<T, VEC, E>, fixed_grid(p.shape, p.token_blocks), block, 0, stream, p);
  });
  const int64_t of_bias = static_cast<int64_t>(p.shape.heads) * p.shape.dim, all = of_bias + p.shape.heads;
  launch_partial_sums(p.d_dt_bias, p.partials, p.token_blocks, all, of_bias, stream);
  launch_partial_sums(p.d_a_log, p.partials + of_bias, p.token_blocks, all, p.shape.heads, stream);
}
void launch_gated_rms_norm_forward(const GatedRmsNormParams& p, cudaStream_t stream) {
  dispatch_heads(p.shape, [&]<class T, int VEC, int E>() {
    launch(norm_forward_kernel<T, VEC, E>, free_grid<E>(p.shape), block, 0, stream, p);
  });
}
void launch_gated_rms_norm_backward(const GatedRmsNormParams& p, cudaStream_t stream) {
  dispatch_heads(p.shape, [&]<class T, int VEC, int E>() {
    launch(norm_backward_kernel<T, VEC, E>, fixed_grid(p.shape, p.token_blocks), block, 0, stream, p);
  });
  const int64_t count = static_cast<int64_t>(p.token_blocks) * p.shape.heads;
  launch_partial_sums(p.dweight, p.partials, count, p.shape.dim, p.shape.dim, stream);
}

}  // namespace lamina::ops::cuda
