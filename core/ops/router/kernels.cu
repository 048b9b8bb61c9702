// The router, one warp per token. Its limit is bytes: forward reads the logits and writes the scores, backward reads the scores
// and writes d_logits, and the lanes of a warp read neighbouring elements. The k rounds of the choice would be the next limit:
// every lane keeps the best of its own experts, so that a round is two warp reductions and a new look by one lane only.
#include "core/ops/router/kernels.h"

#include "core/ops/gpu/device_math.h"

namespace lamina::ops::cuda {
namespace {

constexpr int block_size = 256;
constexpr int warps_per_block = block_size / warp_size;
constexpr int64_t max_key_bytes = 128 << 10;  // of a block's shared memory, below what sm_80 has
constexpr int64_t balance_chunk = 64;         // tokens of one block
constexpr int64_t max_observe_blocks = 512;   // some four for each multiprocessor
constexpr int max_shared_counts = 8192;

// Order of keys = order of values; a NaN is larger than nothing; 0 stays free for "taken".
__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(isnan(x) ? -__int_as_float(0x7f800000) : x + 0.0f);  // + 0: no negative zero
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

struct Best {
  uint32_t key, index;
};

// Of the experts lane, lane + 32, ...; ties to the lower index.
__device__ __forceinline__ Best best_of_lane(const uint32_t* keys, int num_experts, int lane) {
  Best best{0, 0xffffffffu};
#pragma unroll 4
  for (int e = lane; e < num_experts; e += warp_size) {
    if (keys[e] > best.key) best = {keys[e], static_cast<uint32_t>(e)};
  }
  return best;
}

// Takes the `count` <= 32 largest keys, the j-th to lane j, and marks them as taken. `mine` is the best of the lane's experts.
__device__ __forceinline__ int take_largest(uint32_t* keys, int num_experts, int count, int lane, Best& mine) {
  int taken = 0;
  for (int j = 0; j < count; ++j) {
    const uint32_t key = __reduce_max_sync(full_warp, mine.key);
    const uint32_t index = __reduce_min_sync(full_warp, mine.key == key ? mine.index : 0xffffffffu);
    if (lane == j) taken = static_cast<int>(index);
    if (mine.index == index) {
      keys[index] = 0;
      mine = best_of_lane(keys, num_experts, lane);
    }
  }
  return taken;
}

__device__ __forceinline__ void choose_and_weigh(const RouterForwardParams& p, uint32_t* keys, int64_t token,
                                                 const float* scores, int lane) {
  int32_t* const chosen = p.chosen + token * p.k;
  float* const weights = p.weights + token * p.k;
  Best mine = best_of_lane(keys, p.num_experts, lane);
  float sum = 1e-20f;
  for (int first = 0; first < p.k; first += warp_size) {
    const int count = min(p.k - first, warp_size);
    const int expert = take_largest(keys, p.num_experts, count, lane, mine);
    const float score = lane < count ? scores[expert] : 0.0f;
    sum += warp_sum(score);
    if (lane < count) {
      chosen[first + lane] = expert;
      weights[first + lane] = score;
    }
  }
  const float factor = p.scaling / (p.renormalize ? sum : 1.0f);
  for (int j = lane; j < p.k; j += warp_size) weights[j] *= factor;
}

__global__ void __launch_bounds__(block_size) forward_kernel(RouterForwardParams p) {
  LAMINA_DYNAMIC_SHARED(uint32_t, shared);
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int warps = static_cast<int>(blockDim.x) / warp_size;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * warps + warp;
  if (token >= p.num_tokens) return;
  uint32_t* const keys = p.keys != nullptr ? p.keys + token * p.num_experts : shared + warp * p.num_experts;
  const float* const logits = p.logits + token * p.num_experts;
  float* const scores = p.scores + token * p.num_experts;  // may be the logits: a lane reads each before it writes it
  float total = 0.0f;
#pragma unroll 4
  for (int e = lane; e < p.num_experts; e += warp_size) {
    const float score = 1.0f / (1.0f + expf(-logits[e]));  // not __expf: the choice hangs on it
    scores[e] = score;
    keys[e] = key_of(score + p.bias[e]);
    total += score;
  }
  __syncwarp();  // the choice reads scores that other lanes wrote
  choose_and_weigh(p, keys, token, scores, lane);
  if (p.counts == nullptr) return;

  total = warp_sum(total);
  if (lane == 0) p.totals[token] = total;
  for (int e = lane; e < p.num_experts; e += warp_size) keys[e] = key_of(scores[e]);
  int* const counts = p.counts + token / p.tokens_per_sequence * p.num_experts;
  Best mine = best_of_lane(keys, p.num_experts, lane);
  for (int first = 0; first < p.k; first += warp_size) {
    const int count = min(p.k - first, warp_size);
    const int expert = take_largest(keys, p.num_experts, count, lane, mine);
    if (lane < count) atomicAdd(counts + expert, 1);  // of integers: the order does not matter
  }
}

// Sums of s / (sum of s) over a chunk of a sequence's tokens.
__global__ void __launch_bounds__(block_size) shares_kernel(RouterBalanceParams p) {
  const int64_t sequence = blockIdx.y, num_chunks = gridDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * balance_chunk;
  const int64_t count = min(balance_chunk, p.tokens_per_sequence - first);
  const int64_t token = sequence * p.tokens_per_sequence + first;
  const float* const totals = p.totals + token;
  float* const partial = p.partial + (sequence * num_chunks + blockIdx.x) * p.num_experts;
  for (int e = static_cast<int>(threadIdx.x); e < p.num_experts; e += block_size) {
    const float* const scores = p.scores + token * p.num_experts + e;
    float sum = 0.0f;
#pragma unroll 8
    for (int64_t t = 0; t < count; ++t) sum += scores[t * p.num_experts] / totals[t];
    partial[e] = sum;
  }
}

__global__ void __launch_bounds__(block_size) balance_kernel(RouterBalanceParams p, int64_t num_chunks) {
  __shared__ float shared[33];
  const int64_t sequence = blockIdx.x;
  const float* const partial = p.partial + sequence * num_chunks * p.num_experts;
  const auto tokens = static_cast<float>(p.tokens_per_sequence);
  float balance = 0.0f;
  for (int e = static_cast<int>(threadIdx.x); e < p.num_experts; e += block_size) {
    float share = 0.0f;
#pragma unroll 8
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) share += partial[chunk * p.num_experts + e];
    const auto count = static_cast<float>(p.counts[sequence * p.num_experts + e]);
    const float fraction = count * static_cast<float>(p.num_experts) / (static_cast<float>(p.k) * tokens);
    p.fractions[sequence * p.num_experts + e] = fraction;
    balance += fraction * share / tokens;
  }
  balance = block_sum(balance, shared);
  if (threadIdx.x == 0) p.balance[sequence] = balance;
}

// d_logits = (from the weights + from the balance) s (1 - s). The whole row is written as if no expert were chosen, then the
// chosen ones again.
template <class T>
__global__ void __launch_bounds__(block_size) backward_kernel(RouterBackwardParams p) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * warps_per_block + warp;
  if (token >= p.num_tokens) return;
  const float* const scores = p.scores + token * p.num_experts;
  const int32_t* const chosen = p.chosen + token * p.k;
  const float* const d_weights = p.d_weights + token * p.k;
  T* const d_logits = static_cast<T*>(p.d_logits) + token * p.num_experts;

  float sum = 0.0f, projection = 0.0f;
  for (int j = lane; j < p.k; j += warp_size) {
    const float score = scores[chosen[j]];
    sum += score;
    projection += d_weights[j] * score;
  }
  sum = warp_sum(sum) + 1e-20f;
  projection = warp_sum(projection);
  const float factor = p.scaling / (p.renormalize ? sum : 1.0f);
  const float shift = p.renormalize ? projection / sum : 0.0f;

  const bool balanced = p.fractions != nullptr;
  const float* const fractions = balanced ? p.fractions + token / p.tokens_per_sequence * p.num_experts : p.fractions;
  float mean = 0.0f, scale = 0.0f;
  if (balanced) {
    float total = 0.0f, product = 0.0f;
#pragma unroll 4
    for (int e = lane; e < p.num_experts; e += warp_size) {
      total += scores[e];
      product += fractions[e] * scores[e];
    }
    total = warp_sum(total);
    mean = warp_sum(product) / total;
    scale = p.balance_scale / (static_cast<float>(p.tokens_per_sequence) * total);
  }
  const auto from_balance = [&](int e) { return balanced ? scale * (fractions[e] - mean) : 0.0f; };
#pragma unroll 4
  for (int e = lane; e < p.num_experts; e += warp_size) {
    const float score = scores[e];
    d_logits[e] = from_float<T>(from_balance(e) * (score * (1.0f - score)));
  }
  __syncwarp();  // other lanes' elements are written again
  for (int j = lane; j < p.k; j += warp_size) {
    const int e = chosen[j];
    const float score = scores[e];
    const float d_score = factor * (d_weights[j] - shift) + from_balance(e);
    d_logits[e] = from_float<T>(d_score * (score * (1.0f - score)));
  }
}

// Counts are integers, so their order does not matter; entropies are added in a fixed one.
__global__ void __launch_bounds__(block_size) observe_kernel(RouterObserveParams p, bool counts_in_shared) {
  LAMINA_DYNAMIC_SHARED(int, shared_counts);
  __shared__ double entropies[warps_per_block];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size, warp = thread / warp_size;
  int* const counts = counts_in_shared ? shared_counts : p.counts;
  if (counts_in_shared) {
    for (int e = thread; e < p.num_experts; e += block_size) counts[e] = 0;
    __syncthreads();
  }
  const int64_t num_choices = p.num_tokens * p.k, stride = static_cast<int64_t>(gridDim.x) * block_size;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * block_size + thread; n < num_choices; n += stride)
    atomicAdd(counts + p.chosen[n], 1);

  double entropy = 0.0;
  if (p.entropy != nullptr) {
    const int64_t num_warps = static_cast<int64_t>(gridDim.x) * warps_per_block;
    for (int64_t t = static_cast<int64_t>(blockIdx.x) * warps_per_block + warp; t < p.num_tokens; t += num_warps) {
      const float* const scores = p.scores + t * p.num_experts;
      float sum = 0.0f, weighted = 0.0f;
#pragma unroll 4
      for (int e = lane; e < p.num_experts; e += warp_size) {
        const float score = scores[e];
        sum += score;
        if (score > 0.0f) weighted += score * logf(score);
      }
      sum = warp_sum(sum);
      weighted = warp_sum(weighted);
      if (sum > 0.0f)
        entropy += log(static_cast<double>(sum)) - static_cast<double>(weighted) / static_cast<double>(sum);
    }
    if (lane == 0) entropies[warp] = entropy;
  }
  __syncthreads();
  if (counts_in_shared) {
    for (int e = thread; e < p.num_experts; e += block_size)
      if (counts[e] != 0) atomicAdd(p.counts + e, counts[e]);
  }
  if (p.entropy != nullptr && thread == 0) {
    double sum = 0.0;
    for (int w = 0; w < warps_per_block; ++w) sum += entropies[w];
    p.partial_entropy[blockIdx.x] = sum;
  }
}

// One warp; the blocks' sums of a lane, then the lanes'.
__global__ void __launch_bounds__(warp_size) entropy_kernel(RouterObserveParams p, int num_blocks) {
  double sum = 0.0;
  for (int block = static_cast<int>(threadIdx.x); block < num_blocks; block += warp_size)
    sum += p.partial_entropy[block];
#pragma unroll
  for (int offset = warp_size / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(full_warp, sum, offset);
  if (threadIdx.x == 0) *p.entropy += sum;
}

int64_t key_bytes(int num_experts) {
  return static_cast<int64_t>(num_experts) * static_cast<int64_t>(sizeof(uint32_t));
}

}  // namespace

bool router_keys_fit(int num_experts) {
  return key_bytes(num_experts) <= max_key_bytes;
}

void launch_router_forward(const RouterForwardParams& p, cudaStream_t stream) {
  // As many warps as get their keys into the shared memory that needs no asking; at least one.
  int64_t warps = warps_per_block;
  if (p.keys == nullptr) {
    while (warps > 1 && warps * key_bytes(p.num_experts) > static_cast<int64_t>(lamina::cuda::default_shared_limit))
      warps /= 2;
  }
  const size_t shared = p.keys != nullptr ? 0 : static_cast<size_t>(warps * key_bytes(p.num_experts));
  launch(forward_kernel, dim3(blocks_for(p.num_tokens, warps)), dim3(static_cast<unsigned>(warps * warp_size)), shared,
         stream, p);
}

int64_t router_balance_chunks(int64_t tokens_per_sequence) {
  return (tokens_per_sequence + balance_chunk - 1) / balance_chunk;
}

void launch_router_balance(const RouterBalanceParams& p, cudaStream_t stream) {
  const int64_t num_chunks = router_balance_chunks(p.tokens_per_sequence);
  constexpr int64_t max_rows = 65535;  // of a grid
  for (int64_t first = 0; first < p.num_sequences; first += max_rows) {
    RouterBalanceParams part = p;
    part.scores += first * p.tokens_per_sequence * p.num_experts;
    part.totals += first * p.tokens_per_sequence;
    part.partial += first * num_chunks * p.num_experts;
    const auto rows = static_cast<unsigned>(p.num_sequences - first < max_rows ? p.num_sequences - first : max_rows);
    launch(shares_kernel, dim3(static_cast<unsigned>(num_chunks), rows), dim3(block_size), 0, stream, part);
  }
  launch(balance_kernel, dim3(static_cast<unsigned>(p.num_sequences)), dim3(block_size), 0, stream, p, num_chunks);
}

void launch_router_backward(const RouterBackwardParams& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.num_tokens, warps_per_block));
  if (p.low_precision)
    launch(backward_kernel<__nv_bfloat16>, grid, dim3(block_size), 0, stream, p);
  else
    launch(backward_kernel<float>, grid, dim3(block_size), 0, stream, p);
}

int64_t router_observe_blocks(int64_t num_tokens) {
  const int64_t blocks = (num_tokens + warps_per_block - 1) / warps_per_block;
  return blocks < max_observe_blocks ? blocks : max_observe_blocks;
}

void launch_router_observe(const RouterObserveParams& p, cudaStream_t stream) {
  const auto num_blocks = static_cast<int>(router_observe_blocks(p.num_tokens));
  const bool in_shared = p.num_experts <= max_shared_counts;
  const size_t shared = in_shared ? static_cast<size_t>(p.num_experts) * sizeof(int) : 0;
  launch(observe_kernel, dim3(static_cast<unsigned>(num_blocks)), dim3(block_size), shared, stream, p, in_shared);
  if (p.entropy != nullptr) launch(entropy_kernel, dim3(1), dim3(warp_size), 0, stream, p, num_blocks);
}

}  // namespace lamina::ops::cuda
