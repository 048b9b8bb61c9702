// Causal depthwise convolution over a few tokens, then SiLU.
//
// Limit: bytes; forward reads x and writes y, backward reads x and dy and writes dx, each once. A thread owns four neighbouring channels
// (a warp 128) and walks over a chunk of tokens with the last taps - 1 inputs in registers, so that only a chunk's first tokens read what
// the chunk before has read. The loads of several tokens are issued together. Backward carries the unfinished dx of taps - 1 tokens along, and
// the sums for the weights over the chunk, which a second kernel adds up. A single token of several sequences is the same sum, whose
// window lies in each sequence's memory.
#include "core/ops/short_conv/kernels.h"

#include "core/ops/gpu/partial_sums.h"

namespace lamina::ops::cuda {
namespace {

constexpr int block_threads = 128;
constexpr int ahead = 4;  // tokens that are loaded together

template <class T, int VEC>
__device__ __forceinline__ Pack<T, VEC>* at(const Sequences& s, int64_t row, int64_t token, int64_t channel) {
  return reinterpret_cast<Pack<T, VEC>*>(static_cast<T*>(s.data) + row * s.batch_stride + token * s.token_stride +
                                         channel);
}
__device__ __forceinline__ int64_t document_start(const ShortConvParams& p, int64_t row, int64_t token) {
  return p.document_starts == nullptr ? 0 : p.document_starts[row * p.num_tokens + token];
}

// The inputs that a token's sum reaches: x[0] is the oldest.
template <class T, int VEC, int TAPS>
struct Window {
  Pack<T, VEC> x[TAPS];

  __device__ __forceinline__ void push(const Pack<T, VEC>& next) {
#pragma unroll
    for (int i = 0; i + 1 < TAPS; ++i) x[i] = x[i + 1];
    x[TAPS - 1] = next;
  }
  // As before token `begin`.
  __device__ __forceinline__ void fill(const Sequences& s, int64_t row, int64_t begin, int64_t channel) {
#pragma unroll
    for (int i = 0; i < TAPS; ++i) {
      const int64_t token = begin - TAPS + i;
      x[i] = token >= 0 ? *at<T, VEC>(s, row, token, channel) : Pack<T, VEC>{};
    }
  }
};

template <int VEC, int TAPS>
__device__ __forceinline__ void load_weights(float (&weight)[TAPS][VEC], const float* all, int64_t channel) {
#pragma unroll
  for (int i = 0; i < TAPS; ++i) {
#pragma unroll
    for (int v = 0; v < VEC; ++v) weight[i][v] = all[(channel + v) * TAPS + i];
  }
}

// c of the window's last token; `reach` is how many tokens of its document lie before it.
template <class T, int VEC, int TAPS>
__device__ __forceinline__ void convolve(float (&c)[VEC], const Window<T, VEC, TAPS>& window,
                                         const float (&weight)[TAPS][VEC], int64_t reach) {
#pragma unroll
  for (int v = 0; v < VEC; ++v) c[v] = 0.0f;
#pragma unroll
  for (int i = 0; i < TAPS; ++i) {
    if (TAPS - 1 - i > reach) continue;
#pragma unroll
    for (int v = 0; v < VEC; ++v) c[v] = fmaf(weight[i][v], to_float(window.x[i].at[v]), c[v]);
  }
}

template <class T, int VEC, int TAPS>
__global__ void __launch_bounds__(block_threads) forward_kernel(const ShortConvParams p) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) * VEC;
  if (channel >= p.channels) return;
  const int64_t row = blockIdx.y / p.num_chunks, begin = blockIdx.y % p.num_chunks * p.chunk;
  const int64_t end = min(begin + p.chunk, p.num_tokens);
  float weight[TAPS][VEC];
  load_weights(weight, p.weight, channel);
  Window<T, VEC, TAPS> window;
  window.fill(p.x, row, begin, channel);
  for (int64_t first = begin; first < end; first += ahead) {
    Pack<T, VEC> x[ahead];
#pragma unroll
    for (int k = 0; k < ahead; ++k) x[k] = first + k < end ? *at<T, VEC>(p.x, row, first + k, channel) : Pack<T, VEC>{};
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int64_t token = first + k;
      if (token >= end) break;
      window.push(x[k]);
      float c[VEC];
      convolve(c, window, weight, token - document_start(p, row, token));
      Pack<T, VEC> y;
#pragma unroll
      for (int v = 0; v < VEC; ++v) y.at[v] = from_float<T>(c[v] * sigmoid(c[v]));
      *at<T, VEC>(p.y, row, token, channel) = y;
    }
  }
}

// One token: its window is the sequence's tail and itself, and moves on by one.
template <class T, int VEC, int TAPS>
__global__ void __launch_bounds__(block_threads) step_kernel(const ShortConvStepParams p) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) * VEC;
  if (channel >= p.channels) return;
  const Sequences tail = p.tails[blockIdx.y];
  Window<T, VEC, TAPS> window;
#pragma unroll
  for (int i = 0; i + 1 < TAPS; ++i) window.x[i] = *at<T, VEC>(tail, 0, i, channel);
  window.x[TAPS - 1] = *at<T, VEC>(p.x, blockIdx.y, 0, channel);
  float weight[TAPS][VEC], c[VEC];
  load_weights(weight, p.weight, channel);
  convolve(c, window, weight, TAPS - 1);
  Pack<T, VEC> y;
#pragma unroll
  for (int v = 0; v < VEC; ++v) y.at[v] = from_float<T>(c[v] * sigmoid(c[v]));
  *at<T, VEC>(p.y, blockIdx.y, 0, channel) = y;
#pragma unroll
  for (int i = 0; i + 1 < TAPS; ++i) *at<T, VEC>(tail, 0, i, channel) = window.x[i + 1];
}

template <class T, int VEC, int TAPS>
struct BackwardState {
  Window<T, VEC, TAPS> window;
  float weight[TAPS][VEC], dweight[TAPS][VEC], dx[TAPS][VEC];  // dx[d]: of the token d before the present one
};

// One token: its dc goes to the dx of the tokens it saw and, inside the chunk, to the weights' sums. Then dx[TAPS - 1] is complete.
template <class T, int VEC, int TAPS>
__device__ __forceinline__ void step(BackwardState<T, VEC, TAPS>& state, const Pack<T, VEC>& x, const Pack<T, VEC>& dy,
                                     int64_t reach, bool counts) {
  state.window.push(x);
#pragma unroll
  for (int d = TAPS - 1; d > 0; --d) {
#pragma unroll
    for (int v = 0; v < VEC; ++v) state.dx[d][v] = state.dx[d - 1][v];
  }
  float dc[VEC];
  convolve(dc, state.window, state.weight, reach);
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
    const float s = sigmoid(dc[v]);
    dc[v] = to_float(dy.at[v]) * s * (1.0f + dc[v] * (1.0f - s));
    state.dx[0][v] = 0.0f;
  }
#pragma unroll
  for (int d = 0; d < TAPS; ++d) {
    if (d > reach) continue;
    const int i = TAPS - 1 - d;
#pragma unroll
    for (int v = 0; v < VEC; ++v) {
      state.dx[d][v] = fmaf(state.weight[i][v], dc[v], state.dx[d][v]);
      if (counts) state.dweight[i][v] = fmaf(dc[v], to_float(state.window.x[i].at[v]), state.dweight[i][v]);
    }
  }
}

template <class T, int VEC, int TAPS>
__global__ void __launch_bounds__(block_threads) backward_kernel(const ShortConvParams p) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x) * VEC;
  if (channel >= p.channels) return;
  const int64_t row = blockIdx.y / p.num_chunks, begin = blockIdx.y % p.num_chunks * p.chunk;
  const int64_t end = min(begin + p.chunk, p.num_tokens);
  BackwardState<T, VEC, TAPS> state = {};
  load_weights(state.weight, p.weight, channel);
  state.window.fill(p.x, row, begin, channel);
  // The tokens just behind the chunk complete its last dx. Behind the sequence nothing does.
  for (int64_t first = begin; first < end + TAPS - 1; first += ahead) {
    Pack<T, VEC> x[ahead] = {}, dy[ahead] = {};
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      if (first + k >= min(end + TAPS - 1, p.num_tokens)) continue;
      x[k] = *at<T, VEC>(p.x, row, first + k, channel);
      dy[k] = *at<T, VEC>(p.dy, row, first + k, channel);
    }
#pragma unroll
    for (int k = 0; k < ahead; ++k) {
      const int64_t token = first + k;
      if (token >= end + TAPS - 1) break;
      const int64_t reach = token < p.num_tokens ? token - document_start(p, row, token) : -1;
      step(state, x[k], dy[k], reach, token < end);
      const int64_t done = token - (TAPS - 1);
      if (done < begin) continue;
      Pack<T, VEC> dx;
#pragma unroll
      for (int v = 0; v < VEC; ++v) dx.at[v] = from_float<T>(state.dx[TAPS - 1][v]);
      *at<T, VEC>(p.dx, row, done, channel) = dx;
    }
  }
  float* const out = p.partials + (static_cast<int64_t>(blockIdx.y) * p.channels + channel) * TAPS;
#pragma unroll
  for (int v = 0; v < VEC; ++v) {
#pragma unroll
    for (int i = 0; i < TAPS; ++i) out[v * TAPS + i] = state.dweight[i][v];
  }
}

template <class T, int VEC, int TAPS>
void launch_for(const ShortConvParams& p, bool backward, cudaStream_t stream) {
  if (p.taps != TAPS) {
    if constexpr (TAPS > 1) launch_for<T, VEC, TAPS - 1>(p, backward, stream);
    return;
  }
  const dim3 grid(blocks_for(p.channels, int64_t{block_threads} * VEC), static_cast<unsigned>(p.batch * p.num_chunks));
  launch(backward ? backward_kernel<T, VEC, TAPS> : forward_kernel<T, VEC, TAPS>, grid, dim3(block_threads), 0, stream,
         p);
}
void launch_for(const ShortConvParams& p, bool backward, cudaStream_t stream) {
  if (p.is_bf16)
    p.is_vector ? launch_for<__nv_bfloat16, 4, short_conv_max_taps>(p, backward, stream)
                : launch_for<__nv_bfloat16, 1, short_conv_max_taps>(p, backward, stream);
  else
    p.is_vector ? launch_for<float, 4, short_conv_max_taps>(p, backward, stream)
                : launch_for<float, 1, short_conv_max_taps>(p, backward, stream);
}

template <class T, int VEC, int TAPS>
void launch_step(const ShortConvStepParams& p, cudaStream_t stream) {
  if (p.taps != TAPS) {
    if constexpr (TAPS > 1) launch_step<T, VEC, TAPS - 1>(p, stream);
    return;
  }
  const dim3 grid(blocks_for(p.channels, int64_t{block_threads} * VEC), static_cast<unsigned>(p.sequences));
  launch(step_kernel<T, VEC, TAPS>, grid, dim3(block_threads), 0, stream, p);
}

}  // namespace

// As many tokens as leave a thread for every place in a large GPU; a function of the shape alone, for the sums' sake. The limit on a
// grid's second extent holds for sequences of up to 65,535 * 32 tokens.
int64_t short_conv_chunk(int64_t batch, int64_t num_tokens, int64_t channels) {
  constexpr int64_t enough_threads = 132 * 1024;
  int64_t chunk = 256;
  while (chunk > 32 && batch * ((num_tokens + chunk - 1) / chunk) * (channels / 4) < enough_threads) chunk /= 2;
  while (batch * ((num_tokens + chunk - 1) / chunk) > 65535) chunk *= 2;
  return chunk;
}

void launch_short_conv_forward(const ShortConvParams& p, cudaStream_t stream) {
  launch_for(p, false, stream);
}
void launch_short_conv_step(const ShortConvStepParams& p, cudaStream_t stream) {
  if (p.is_bf16)
    p.is_vector ? launch_step<__nv_bfloat16, 4, short_conv_max_taps>(p, stream)
                : launch_step<__nv_bfloat16, 1, short_conv_max_taps>(p, stream);
  else
    p.is_vector ? launch_step<float, 4, short_conv_max_taps>(p, stream)
                : launch_step<float, 1, short_conv_max_taps>(p, stream);
}
void launch_short_conv_backward(const ShortConvParams& p, cudaStream_t stream) {
  launch_for(p, true, stream);
  launch_partial_sums(p.dweight, p.partials, p.batch * p.num_chunks, p.channels * p.taps, p.channels * p.taps, stream);
}

}  // namespace lamina::ops::cuda
