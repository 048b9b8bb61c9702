// What each chunk of Kimi Delta Attention needs before its state is known: decayed q and k, Aqk and the inverse M.
//
// Work per token and head: about 3 K multiplications for decays, K (C/2 + 8) MACs of scores, of which those of the sub-blocks
// on the diagonal are done element by element, because no factorisation of their decay is safe for every gate: 2 x 136 K per
// sub-block, and their sums over lanes. That part of the work bounds the kernel, beside 8 K + 10 K bytes moved per token and head
// (K = 128: 1 KiB in, 1 KiB out). Every operand is read once; two blocks share a multiprocessor.
#include "core/ops/kda/kernel_tiles.h"

namespace lamina::ops::cuda {
namespace kda {

// Chunks begin at every 64th token of a document.
__global__ void __launch_bounds__(threads) chunk_table_kernel(const KdaChunks chunks) {
  __shared__ int32_t warp_counts[num_warps];
  const int64_t batch = blockIdx.x;
  const int32_t* starts = chunks.starts + batch * chunks.tokens;
  int32_t* table = chunks.table + batch * (chunks.tokens + 1);
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  int32_t count = 0;
  for (int64_t first = 0; first < chunks.tokens; first += threads) {
    const int64_t t = first + threadIdx.x;
    const bool begins = t < chunks.tokens && (t - starts[t]) % chunk == 0;
    const unsigned votes = __ballot_sync(full_warp, begins);
    if (lane == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();
    int32_t before = count + __popc(votes & ((1u << lane) - 1u));
    for (int w = 0; w < num_warps; ++w) {
      if (w < warp) before += warp_counts[w];
      count += warp_counts[w];
    }
    if (begins) table[before] = static_cast<int32_t>(t);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    table[count] = static_cast<int32_t>(chunks.tokens);
    chunks.counts[batch] = count;
  }
}

constexpr int slice = 128;  // channels at a time
constexpr int score_leading = chunk + 1;

template <class E>
struct PrepareShared {
  static constexpr int leading = slice + skew<E>;
  E *left_q, *left_k;  // [64, slice]: times the decay since before the token's sub-block
  E* right;  // k times the decay until before sub-block I, for the tokens before it: for I = 1, 2, 3 one below another
  float* totals;       // [4, slice]: the decay of each sub-block
  float *a, *aqk, *m;  // [64, 64]
  float* products;     // [3, 16, 17], where `right` was
  float* beta;         // [64]
  __host__ __device__ __forceinline__ explicit PrepareShared(Carver& carver)
      : left_q(carver.take<E>(chunk * leading)),
        left_k(carver.take<E>(chunk * leading)),
        right(carver.take<E>(off_diagonal_rows * leading)),
        totals(carver.take<float>(num_sub_blocks * slice)),
        a(carver.take<float>(chunk * score_leading)),
        aqk(carver.take<float>(chunk * score_leading)),
        m(carver.take<float>(chunk * score_leading)),
        products(reinterpret_cast<float*>(right)),
        beta(carver.take<float>(chunk)) {}
};

// Two channels of a token; zeros, and no decay, where there is none.
template <class E>
struct Token {
  Pack<E, 2> q, k;
  float alpha[2];
};
// Walks over tokens; addresses by addition, not one register pair each.
template <class E, bool fast>
struct Reader {
  const E *q, *k;
  const float* g;
  int left, channels;  // tokens of the chunk from here on; of the two channels how many there are
  __device__ __forceinline__ Reader(const KdaParams& p, const Pair& pair, const Span& span, int row, int channel)
      : q(row_of<E>(p.q, pair, span.begin + row) + channel),
        k(row_of<E>(p.k, pair, span.begin + row) + channel),
        g(row_of<float>(p.g, pair, span.begin + row) + channel),
        left(span.count() - row),
        channels(p.d_k - channel) {}
  __device__ __forceinline__ Token<E> next(const KdaParams& p) {
    Token<E> out{{}, {}, {1.0f, 1.0f}};
    if (left > 0) {
      if constexpr (fast) {
        out.q = *reinterpret_cast<const Pack<E, 2>*>(q);
        out.k = *reinterpret_cast<const Pack<E, 2>*>(k);
        const auto decay = *reinterpret_cast<const Pack<float, 2>*>(g);
        out.alpha[0] = decay_of<E>(decay.at[0]), out.alpha[1] = decay_of<E>(decay.at[1]);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (i >= channels) continue;
          out.q.at[i] = q[i], out.k.at[i] = k[i];
          out.alpha[i] = decay_of<E>(g[i]);
        }
      }
    }
    q += p.q.token, k += p.k.token, g += p.g.token, --left;
    return out;
  }
};

// A thread's 16 tokens of a sub-block. Decayed rows: to shared memory for the scores between sub-blocks, to scratch for the scans.
template <class E, bool fast>
__device__ __forceinline__ void write_decayed(const KdaParams& p, const Pair& pair, const Span& span, int block,
                                              int channel, int slice_channel, const Token<E> (&tokens)[sub_block],
                                              const PrepareShared<E>& shared, int written_rows) {
  constexpr int leading = PrepareShared<E>::leading;
  const int64_t width = fast ? slice : p.k_padded;
  float before[2] = {1.0f, 1.0f}, after[2] = {1.0f, 1.0f},
        until[num_sub_blocks][2];  // until: before sub-block I > block
#pragma unroll
  for (int s = 0; s < num_sub_blocks; ++s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = shared.totals[s * slice + slice_channel + i];
      if (s < block) before[i] *= total;
      until[s][i] = after[i];
      if (s > block) after[i] *= total;
    }
  }
  const int64_t row = pair.local * p.rows + span.begin + block * sub_block;
  const int stored = written_rows - block * sub_block;
  const bool there = fast || channel < width;
  E* q_out = static_cast<E*>(p.q_decayed) + row * width + channel;
  E* k_out = static_cast<E*>(p.k_decayed) + row * width + channel;
  E* end_out = static_cast<E*>(p.k_to_end) + row * width + channel;
  float decay[2] = {1.0f, 1.0f};
#pragma unroll
  for (int r = 0; r < sub_block; ++r) {
    decay[0] *= tokens[r].alpha[0], decay[1] *= tokens[r].alpha[1];
    const float q[2] = {decay[0] * (p.scale * to_float(tokens[r].q.at[0])),
                        decay[1] * (p.scale * to_float(tokens[r].q.at[1]))};
    const float k[2] = {decay[0] * to_float(tokens[r].k.at[0]), decay[1] * to_float(tokens[r].k.at[1])};
    const int at = (block * sub_block + r) * leading + slice_channel;
    put_two(shared.left_q + at, q[0], q[1]);
    put_two(shared.left_k + at, k[0], k[1]);
    if (r < stored && there) {
      put_two(q_out + r * width, before[0] * q[0], before[1] * q[1]);
      put_two(k_out + r * width, before[0] * k[0], before[1] * k[1]);
    }
  }
  __syncwarp();
  decay[0] = decay[1] = 1.0f;
  const E* key = row_of<E>(p.k, pair, span.begin + (block + 1) * sub_block - 1) + channel;
  const int count = span.count() - block * sub_block;
#pragma unroll
  for (int r = sub_block - 1; r >= 0; --r, key -= p.k.token) {
    Pack<E, 2> raw = tokens[r].k;
    if constexpr (fast) {  // again from a cache: the compiler would hold the fp32 values of all 16
      raw = {};
      if (r < count) raw = *reinterpret_cast<const Pack<E, 2>*>(key);
    }
    const float k[2] = {decay[0] * to_float(raw.at[0]), decay[1] * to_float(raw.at[1])};
#pragma unroll
    for (int s = 1; s < num_sub_blocks; ++s) {
      if (s > block) {
        const int at = (sub_block * (s * (s - 1) / 2 + block) + r) * leading + slice_channel;
        put_two(shared.right + at, until[s][0] * k[0], until[s][1] * k[1]);
      }
    }
    if (r < stored && there) put_two(end_out + r * width, after[0] * k[0], after[1] * k[1]);
    decay[0] *= tokens[r].alpha[0], decay[1] *= tokens[r].alpha[1];
  }
  if (block == 0 && there && (!span.last || span.sequence_last)) {
    float* to = p.decays + (pair.local * p.slots + slot_after(span, p)) * width + channel;
    to[0] = after[0] * decay[0], to[1] = after[1] * decay[1];
  }
}

// values[l], summed over the lanes, to values[0] of lane l: first offset = 16.
template <int offset>
__device__ __forceinline__ void sum_by_lane(float (&values)[warp_size]) {
  const bool upper = (threadIdx.x & offset) != 0;
#pragma unroll
  for (int m = 0; m < offset; ++m) {
    const float send = upper ? values[m] : values[m + offset], keep = upper ? values[m + offset] : values[m];
    values[m] = keep + __shfl_xor_sync(full_warp, send, offset);
  }
  if constexpr (offset > 1) sum_by_lane<offset / 2>(values);
}

// A warp's 64 channels of the scores within a sub-block: of row i, lane l adds Aqk's column l, or A's column l - 16, to `to`. Tokens
// are read again, from a cache, rather than held in registers.
template <class E, bool fast>
__device__ __forceinline__ void diagonal_scores(const KdaParams& p, const Pair& pair, const Span& span, int block,
                                                int channel, float* to) {
  Reader<E, fast> reader(p, pair, span, block * sub_block, channel);
  float key[sub_block][2];
#pragma unroll
  for (int i = 0; i < sub_block; ++i) {
    const Token<E> token = reader.next(p);
    const float q[2] = {p.scale * to_float(token.q.at[0]), p.scale * to_float(token.q.at[1])};
    const float k[2] = {to_float(token.k.at[0]), to_float(token.k.at[1])};
    float values[warp_size];
#pragma unroll
    for (int j = 0; j < sub_block; ++j) {
      values[j] = values[sub_block + j] = 0.0f;
      if (j > i) continue;
      if (j < i) {
        key[j][0] *= token.alpha[0], key[j][1] *= token.alpha[1];
        values[sub_block + j] = fmaf(k[0], key[j][0], k[1] * key[j][1]);
      } else {
        key[j][0] = k[0], key[j][1] = k[1];
      }
      values[j] = fmaf(q[0], key[j][0], q[1] * key[j][1]);
    }
    sum_by_lane<warp_size / 2>(values);
    to[i * score_leading] += values[0];
    __syncwarp();  // keeps the compiler from reading many tokens ahead, for which there are no registers
  }
}
// The second half of the channels' sums lies in `m`, 32 of a row side by side; add it to the first half's.
template <class E>
__device__ __forceinline__ void add_halves(const PrepareShared<E>& shared) {
  for (int n = static_cast<int>(threadIdx.x); n < chunk * warp_size; n += threads) {
    const int row = n / warp_size, lane = n % warp_size, column = row / sub_block * sub_block + lane % sub_block;
    (lane < sub_block ? shared.aqk : shared.a)[row * score_leading + column] += shared.m[row * score_leading + lane];
  }
  __syncthreads();
}

// Scores between sub-blocks: 12 tiles of 16 x 16, shared out over the warps.
template <class E>
__device__ __forceinline__ void off_diagonal_scores(const PrepareShared<E>& shared, int depth) {
  constexpr int leading = PrepareShared<E>::leading;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  for (int unit = warp; unit < 12; unit += num_warps) {
    const int tile = unit % 6, row_block = tile == 0 ? 1 : tile < 3 ? 2 : 3;
    const int column_block = tile - row_block * (row_block - 1) / 2;
    const E* left = (unit < 6 ? shared.left_q : shared.left_k) + row_block * sub_block * leading;
    float* out = (unit < 6 ? shared.aqk : shared.a) + row_block * sub_block * score_leading + column_block * sub_block;
    float sums[2][4];
    clear(sums);
    multiply(sums, Matrix<E, false, true>{left, leading},
             Matrix<E, true, true>{shared.right + tile * sub_block * leading, leading}, depth);
    each_sum(sums, [&](int row, int column, float sum) { out[row * score_leading + column] += sum; });
  }
}

// M from A, whose columns are multiplied by beta here: 16 x 16 blocks by substitution, then those below the diagonal by
// M_IJ = -M_II sum of (A B)_IL M_LJ over J <= L < I. fp32 throughout.
template <class E>
__device__ __forceinline__ void invert(const PrepareShared<E>& shared) {
  constexpr int ld = score_leading, product_ld = sub_block + 1;
  const int thread = static_cast<int>(threadIdx.x);
  for (int n = thread; n < chunk * chunk; n += threads) {
    const int row = n / chunk, column = n % chunk;
    shared.a[row * ld + column] *= shared.beta[column];
    shared.m[row * ld + column] = 0.0f;
  }
  __syncthreads();
  if (thread < chunk) {
    const int first = thread / sub_block * sub_block, column = thread % sub_block;
    const float* a = shared.a + first * ld + first;
    float x[sub_block];
#pragma unroll
    for (int i = 0; i < sub_block; ++i) {
      x[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
      for (int l = 0; l < i; ++l) x[i] = fmaf(-a[i * ld + l], x[l], x[i]);
      shared.m[(first + i) * ld + first + column] = x[i];
    }
  }
  const int row = thread / sub_block, column = thread % sub_block;
  for (int distance = 1; distance < num_sub_blocks; ++distance) {
    __syncthreads();
    for (int upper = 0; upper + distance < num_sub_blocks; ++upper) {
      const int left = upper * sub_block, top = (upper + distance) * sub_block;
      float sum = 0.0f;
#pragma unroll 16
      for (int l = left; l < top; ++l)
        sum = fmaf(shared.a[(top + row) * ld + l], shared.m[l * ld + left + column], sum);
      shared.products[(upper * sub_block + row) * product_ld + column] = sum;
    }
    __syncthreads();
    for (int upper = 0; upper + distance < num_sub_blocks; ++upper) {
      const int left = upper * sub_block, top = (upper + distance) * sub_block;
      const float* product = shared.products + upper * sub_block * product_ld + column;
      float sum = 0.0f;
#pragma unroll
      for (int l = 0; l < sub_block; ++l)
        sum = fmaf(-shared.m[(top + row) * ld + top + l], product[l * product_ld], sum);
      shared.m[(top + row) * ld + left + column] = sum;
    }
  }
  __syncthreads();
}

template <class E, bool fast>
__device__ __forceinline__ void prepare_chunk(const KdaParams& p, const Pair& pair, const Span& span,
                                              const PrepareShared<E>& shared) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size;
  const int block = warp / 2, slice_channel = 2 * (thread % (slice / 2));
  // After a sequence's last token zeros follow: scans read whole chunks there.
  const int written_rows = span.sequence_last ? chunk : span.count();
  for (int n = thread; n < chunk * score_leading; n += threads) shared.a[n] = shared.aqk[n] = shared.m[n] = 0.0f;
  if (thread < chunk)
    shared.beta[thread] = thread < span.count() ? safe_beta(*row_of<float>(p.beta, pair, span.begin + thread)) : 1.0f;
  const int width = fast ? slice : p.k_padded;
  for (int first = 0; first < width; first += slice) {
    const int channel = first + slice_channel;
    Reader<E, fast> reader(p, pair, span, block * sub_block, channel);
    Token<E> tokens[sub_block];
    float even[2] = {1.0f, 1.0f},
          odd[2] = {1.0f, 1.0f};  // not a running product: the compiler would keep it all for later
#pragma unroll
    for (int r = 0; r < sub_block; r += 2) {
      tokens[r] = reader.next(p), tokens[r + 1] = reader.next(p);
      even[0] *= tokens[r].alpha[0], even[1] *= tokens[r].alpha[1];
      odd[0] *= tokens[r + 1].alpha[0], odd[1] *= tokens[r + 1].alpha[1];
    }
    put_two(shared.totals + block * slice + slice_channel, even[0] * odd[0], even[1] * odd[1]);
    __syncthreads();
    write_decayed<E, fast>(p, pair, span, block, channel, slice_channel, tokens, shared, written_rows);
    const int lane = thread % warp_size, row = block * sub_block * score_leading;
    float* first_half = (lane < sub_block ? shared.aqk : shared.a) + row + block * sub_block + lane % sub_block;
    __syncwarp();
    diagonal_scores<E, fast>(p, pair, span, block, channel, warp % 2 == 0 ? first_half : shared.m + row + lane);
    __syncthreads();
    off_diagonal_scores(shared, fast ? slice : (width - first < slice ? width - first : slice));
    __syncthreads();
  }
  add_halves(shared);
  invert(shared);
  const int64_t row = pair.local * p.rows + span.begin;
  E *m = static_cast<E*>(p.m) + row * chunk, *aqk = static_cast<E*>(p.aqk) + row * chunk;
  for (int n = 2 * thread; n < written_rows * chunk; n += 2 * threads) {
    const int at = n / chunk * score_leading + n % chunk;
    put_two(m + n, shared.m[at], shared.m[at + 1]);
    put_two(aqk + n, shared.aqk[at], shared.aqk[at + 1]);
  }
  __syncthreads();
}

template <class E, bool fast>
__global__ void __launch_bounds__(threads, fast ? 2 : 1) prepare_kernel(const KdaParams p) {
  LAMINA_DYNAMIC_SHARED(unsigned char, memory);
  Carver carver{memory};
  const PrepareShared<E> shared(carver);
  const Pair pair = pair_of(p, blockIdx.x);
  const int64_t count = num_chunks(p.chunks, pair.batch);
  for (int64_t index = blockIdx.y; index < count; index += gridDim.y)
    prepare_chunk<E, fast>(p, pair, span_of(p.chunks, pair.batch, index), shared);
}

template <class E, bool fast>
void prepare(const KdaParams& p, cudaStream_t stream) {
  launch(prepare_kernel<E, fast>, chunk_grid(p), dim3(threads), shared_bytes<PrepareShared<E>>(), stream, p);
}

}  // namespace kda

void launch_kda_chunk_table(const KdaParams& params, cudaStream_t stream) {
  launch(kda::chunk_table_kernel, dim3(static_cast<unsigned>(params.batch)), dim3(kda::threads), 0, stream,
         params.chunks);
}

void launch_kda_prepare(const KdaParams& params, cudaStream_t stream) {
  if (params.fast)
    kda::prepare<__nv_bfloat16, true>(params, stream);
  else if (params.bf16)
    kda::prepare<__nv_bfloat16, false>(params, stream);
  else
    kda::prepare<float, false>(params, stream);
}

}  // namespace lamina::ops::cuda
