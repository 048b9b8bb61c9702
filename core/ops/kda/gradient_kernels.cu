// The gradients of a chunk of Kimi Delta Attention, once the states and their gradients around it are known (core/ops/kda/
// cpu_backward.cpp has the formulas):
//   dAqk = dO R^T (i >= j),  dA = -(beta Y) R^T (i > j)
//   dq_i = decay (dO S^T)_i + sum_j dAqk_ij k_j D_ij,     up_i = -decay (beta Y S^T)_i + sum_j dA_ij k_j D_ij
//   down_j = decay to the end (R dS^T)_j + sum_i (dAqk_ij q_i + dA_ij k_i) D_ij,     dk = up + down
// dg by running sums over the chunk, of terms apart as on the CPU, so that nothing large cancels; dbeta = <Y, E>.
//
// Per chunk and pair: MACs 3 C K V + 2 C^2 V + 3 C^2 K (half of it within the sub-blocks on the diagonal, element by element, in
// fp32); bytes 20 C K + 4 K V + 10 C V. Limit: the element-wise sums on the diagonal, 6 multiply-adds per pair of tokens and channel,
// then the bytes. A block takes 64 channels at a time.
#include "core/ops/kda/kernel_tiles.h"

namespace lamina::ops::cuda {
namespace kda {

constexpr int slice = 64;  // channels at a time: a thread has one, of the 16 tokens of a sub-block

template <class E, bool fast>
struct GradientShared {
  static constexpr int scores = chunk + skew<E>, narrow = slice + skew<E>, wide = 128 + skew<E>, sums = slice + 4;
  E *d_aqk, *d_a;                        // [64, 64]
  float *own_d_aqk, *own_d_a;            // [4, 16, 16]: their sub-blocks on the diagonal
  float* totals;                         // [4, slice]: the decay of each sub-block
  float* through;                        // [slice]: the decay of the chunk times <S, dS>
  float *before, *after;                 // [4, slice]: sums over each sub-block, for dg
  float *dq, *up, *to_state, *to_chunk;  // [64, slice]: of products; to_*: down
  E* right;                              // as in prepare
  E *left_q, *left_k;   // decayed since sub-block J's end, for the tokens after it: for J = 0, 1, 2 one below another
  E *d_o, *beta_y, *r;  // [64, 128], when fast
  E *state, *d_state;   // [slice, 128], when fast
  __host__ __device__ __forceinline__ explicit GradientShared(Carver& carver)
      : d_aqk(carver.take<E>(chunk * scores)),
        d_a(carver.take<E>(chunk * scores)),
        own_d_aqk(carver.take<float>(chunk * sub_block)),
        own_d_a(carver.take<float>(chunk * sub_block)),
        totals(carver.take<float>(num_sub_blocks * slice)),
        through(carver.take<float>(slice)),
        before(carver.take<float>(num_sub_blocks * slice)),
        after(carver.take<float>(num_sub_blocks * slice)),
        dq(carver.take<float>(chunk * sums)),
        up(carver.take<float>(chunk * sums)),
        to_state(carver.take<float>(chunk * sums)),
        to_chunk(carver.take<float>(chunk * sums)),
        right(carver.take<E>(off_diagonal_rows * narrow)),
        left_q(carver.take<E>(off_diagonal_rows * narrow)),
        left_k(carver.take<E>(off_diagonal_rows * narrow)),
        d_o(carver.take<E>(fast ? chunk * wide : 0)),
        beta_y(carver.take<E>(fast ? chunk * wide : 0)),
        r(carver.take<E>(fast ? chunk * wide : 0)),
        state(right),
        d_state(right + (fast ? slice * wide : 0)) {
    static_assert(2 * slice * wide <= 3 * off_diagonal_rows * narrow || !fast);
  }
};

// Rows of V elements, in shared memory or in scratch.
template <class E, bool fast>
struct Values {
  const E *d_o, *beta_y, *r;  // [64, leading]
  int leading;
};

template <class E, bool fast>
__device__ __forceinline__ Values<E, fast> values_of(const KdaParams& p, const Pair& pair, const Span& span,
                                                     const GradientShared<E, fast>& shared) {
  const int64_t row = (pair.local * p.rows + span.begin) * p.v_padded;
  const E *beta_y = static_cast<const E*>(p.beta_y) + row, *r = static_cast<const E*>(p.r) + row;
  if constexpr (fast) {
    constexpr int wide = GradientShared<E, fast>::wide;
    stage_rows(shared.d_o, wide, row_of<E>(p.d_o, pair, span.begin), p.d_o.token, 128, span.count());
    stage_rows(shared.beta_y, wide, beta_y, 128, 128, span.count());
    stage_rows(shared.r, wide, r, 128, 128, span.count());
    lamina::cuda::cp_async_commit();
    lamina::cuda::cp_async_wait<0>();
    __syncthreads();
    return {shared.d_o, shared.beta_y, shared.r, wide};
  } else {
    return {static_cast<const E*>(p.d_o_copy) + row, beta_y, r, p.v_padded};
  }
}

// dAqk and dA: each warp 16 rows of one of them.
template <class E, bool fast>
__device__ __forceinline__ void score_gradients(const Values<E, fast>& in, int depth, int count,
                                                const GradientShared<E, fast>& shared) {
  constexpr int leading = GradientShared<E, fast>::scores;
  const int warp = static_cast<int>(threadIdx.x) / warp_size, block = warp % num_sub_blocks;
  const bool of_keys = warp / num_sub_blocks == 1;
  float sums[8][4];
  clear(sums);
  multiply(sums, Matrix<E, false, fast>{(of_keys ? in.beta_y : in.d_o) + block * sub_block * in.leading, in.leading},
           Matrix<E, true, fast>{in.r, in.leading}, depth);
  E* out = of_keys ? shared.d_a : shared.d_aqk;
  float* own = (of_keys ? shared.own_d_a : shared.own_d_aqk) + block * sub_block * sub_block;
  each_sum(sums, [&](int row, int column, float sum) {
    const int i = block * sub_block + row;
    const bool valid = i < count && column < count && (of_keys ? i > column : i >= column);
    const float value = valid ? (of_keys ? -sum : sum) : 0.0f;
    out[i * leading + column] = from_float<E>(value);
    if (column / sub_block == block) own[row * sub_block + column % sub_block] = value;
  });
}

// dbeta_i = <Y_i, E_i>, from beta Y and R = beta E.
template <class E, bool fast>
__device__ __forceinline__ void beta_gradients(const KdaParams& p, const Pair& pair, const Span& span,
                                               const Values<E, fast>& in) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  for (int row = warp; row < span.count(); row += num_warps) {
    float sum = 0.0f;
    for (int n = lane; n < p.v_padded; n += warp_size)
      sum = fmaf(to_float(in.beta_y[row * in.leading + n]), to_float(in.r[row * in.leading + n]), sum);
    sum = warp_sum(sum);
    const float beta = safe_beta(*row_of<float>(p.beta, pair, span.begin + row));
    if (lane == 0) *row_of<float>(p.dbeta, pair, span.begin + row) = sum / beta / beta;
  }
}

struct Part {  // one channel of a sub-block's tokens
  float q[sub_block], k[sub_block], alpha[sub_block];
};

template <class E>
__device__ __forceinline__ void load_part(const KdaParams& p, const Pair& pair, const Span& span, int first_row,
                                          int channel, Part& part) {
  const E* q = row_of<E>(p.q, pair, span.begin + first_row) + channel;
  const E* k = row_of<E>(p.k, pair, span.begin + first_row) + channel;
  const float* g = row_of<float>(p.g, pair, span.begin + first_row) + channel;
  const int count = channel < p.d_k ? span.count() - first_row : 0;
#pragma unroll
  for (int r = 0; r < sub_block; ++r, q += p.q.token, k += p.k.token, g += p.g.token) {
    part.q[r] = r < count ? p.scale * to_float(*q) : 0.0f;
    part.k[r] = r < count ? to_float(*k) : 0.0f;
    part.alpha[r] = r < count ? decay_of<E>(*g) : 1.0f;
  }
}

// Operands of the products within the chunk.
template <class E, bool fast>
__device__ __forceinline__ void write_decayed(const Part& part, int block, int column,
                                              const GradientShared<E, fast>& shared) {
  constexpr int leading = GradientShared<E, fast>::narrow;
  float between[num_sub_blocks];  // from this sub-block to another
#pragma unroll
  for (int s = 0; s < num_sub_blocks; ++s) {
    between[s] = 1.0f;
#pragma unroll
    for (int l = 1; l < num_sub_blocks - 1; ++l) {
      if ((block < l && l < s) || (s < l && l < block)) between[s] *= shared.totals[l * slice + column];
    }
  }
  constexpr int first_left[] = {0, 48, 80};  // of the tokens after sub-block J
  float decay = 1.0f;
#pragma unroll
  for (int r = 0; r < sub_block; ++r) {
    decay *= part.alpha[r];
#pragma unroll
    for (int s = 0; s < num_sub_blocks - 1; ++s) {
      if (s >= block) continue;
      const int at = (first_left[s] + (block - s - 1) * sub_block + r) * leading + column;
      shared.left_q[at] = from_float<E>(between[s] * decay * part.q[r]);
      shared.left_k[at] = from_float<E>(between[s] * decay * part.k[r]);
    }
  }
  decay = 1.0f;
#pragma unroll
  for (int r = sub_block - 1; r >= 0; --r) {
#pragma unroll
    for (int s = 1; s < num_sub_blocks; ++s) {
      if (s <= block) continue;
      shared.right[(sub_block * (s * (s - 1) / 2 + block) + r) * leading + column] =
          from_float<E>(between[s] * decay * part.k[r]);
    }
    decay *= part.alpha[r];
  }
}

// A slice of S or dS in its slot: [channels, V].
template <class E>
__device__ __forceinline__ const E* slot_of(const KdaParams& p, const void* slots, const Pair& pair, int64_t slot,
                                            int channel) {
  return static_cast<const E*>(slots) + ((pair.local * p.slots + slot) * p.k_padded + channel) * p.v_padded;
}

// What passes the chunk from end to end: the decay of a channel times <S, dS>.
template <class E>
__device__ __forceinline__ void through_chunk(const KdaParams& p, const E* state, const E* d_state, int leading,
                                              const float* decays, int channels, float* through) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  for (int channel = warp; channel < slice; channel += num_warps) {
    float sum = 0.0f;
    if (state != nullptr && d_state != nullptr && channel < channels) {
      const int64_t row = static_cast<int64_t>(channel) * leading;
      for (int n = lane; n < p.v_padded; n += warp_size)
        sum = fmaf(to_float(state[row + n]), to_float(d_state[row + n]), sum);
      sum = decays[channel] * warp_sum(sum);
    }
    if (lane == 0) through[channel] = sum;
  }
}

template <int n>
__device__ __forceinline__ void put_sums(float (&sums)[n][4], float* to, int leading) {
  each_two(sums, [&](int row, int column, float x, float y) { put_two(to + row * leading + column, x, y); });
}

// dq and up through the state before: each warp 16 rows of one of them, all columns of the slice.
template <class E, bool fast>
__device__ __forceinline__ void row_state_products(const Values<E, fast>& in, const E* state, int state_leading,
                                                   int depth, float (&sums)[8][4]) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size, block = warp % num_sub_blocks;
  const bool of_keys = warp / num_sub_blocks == 1;
  clear(sums);
  if (state == nullptr) return;
  multiply(sums, Matrix<E, false, fast>{(of_keys ? in.beta_y : in.d_o) + block * sub_block * in.leading, in.leading},
           Matrix<E, true, fast>{state, state_leading}, depth);
}
// Down through the state after: each warp 16 rows, half the columns.
template <class E, bool fast>
__device__ __forceinline__ void down_state_products(const Values<E, fast>& in, const E* d_state, int leading, int depth,
                                                    const GradientShared<E, fast>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size, block = warp % num_sub_blocks;
  const int column = warp / num_sub_blocks * (slice / 2);
  float sums[4][4];
  clear(sums);
  if (d_state != nullptr)
    multiply(sums, Matrix<E, false, fast>{in.r + block * sub_block * in.leading, in.leading},
             Matrix<E, true, fast>{d_state + static_cast<int64_t>(column) * leading, leading}, depth);
  constexpr int to = GradientShared<E, fast>::sums;
  put_sums(sums, shared.to_state + block * sub_block * to + column, to);
}

// Within the chunk, between sub-blocks; dq and up up to the decay since the row's sub-block began, down up to the decay until it ends.
template <class E, bool fast>
__device__ __forceinline__ void chunk_products(const GradientShared<E, fast>& shared, float (&sums)[8][4]) {
  using S = GradientShared<E, fast>;
  const int warp = static_cast<int>(threadIdx.x) / warp_size, block = warp % num_sub_blocks,
            half = warp / num_sub_blocks;
  const bool of_keys = half == 1;
  float before[8][2];  // decay since the chunk began
  const int pair = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      before[j][i] = of_keys ? -1.0f : 1.0f;
      for (int s = 0; s < block; ++s) before[j][i] *= shared.totals[s * slice + 8 * j + 2 * pair + i];
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[j][i] *= before[j][i % 2];
  }
  multiply(sums,
           Matrix<E, false, true>{(of_keys ? shared.d_a : shared.d_aqk) + block * sub_block * S::scores, S::scores},
           Matrix<E, false, true>{shared.right + sub_block * (block * (block - 1) / 2) * S::narrow, S::narrow},
           block * sub_block);
  put_sums(sums, (of_keys ? shared.up : shared.dq) + block * sub_block * S::sums, S::sums);

  const int first_left = block == 0 ? 0 : block == 1 ? 48 : 80, after = (block + 1) * sub_block, depth = chunk - after;
  const int column = half * (slice / 2), from = after * S::scores + block * sub_block;
  float down[4][4];
  clear(down);
  multiply(down, Matrix<E, true, true>{shared.d_aqk + from, S::scores},
           Matrix<E, false, true>{shared.left_q + first_left * S::narrow + column, S::narrow}, depth);
  multiply(down, Matrix<E, true, true>{shared.d_a + from, S::scores},
           Matrix<E, false, true>{shared.left_k + first_left * S::narrow + column, S::narrow}, depth);
  put_sums(down, shared.to_chunk + block * sub_block * S::sums + column, S::sums);
}

// A thread's channel and its 16 tokens: the decays that products lack, and the sub-block on the diagonal; in place. The token's own
// term of dAqk stays apart, because no decay carries it. Rows after the chunk's end are of other tokens: zeros.
template <class E, bool fast>
__device__ __forceinline__ void diagonal_gradients(const Part& part, int block, int column, int count,
                                                   const GradientShared<E, fast>& shared) {
  constexpr int leading = GradientShared<E, fast>::sums;
  const float *d_aqk = shared.own_d_aqk + block * sub_block * sub_block,
              *d_a = shared.own_d_a + block * sub_block * sub_block;
  const int first = block * sub_block;
  float key[sub_block], decay = 1.0f;
#pragma unroll
  for (int i = 0; i < sub_block; ++i) {
    decay *= part.alpha[i];
    const int at = (first + i) * leading + column;
    const bool valid = first + i < count;
    float dq = valid ? decay * shared.dq[at] : 0.0f, up = valid ? decay * shared.up[at] : 0.0f;
    key[i] = part.k[i];
#pragma unroll
    for (int j = 0; j < i; ++j) {
      key[j] *= part.alpha[i];
      dq = fmaf(d_aqk[i * sub_block + j], key[j], dq);
      up = fmaf(d_a[i * sub_block + j], key[j], up);
    }
    shared.dq[at] = dq, shared.up[at] = up;
    __syncwarp();  // keeps the compiler from reading ahead what there are no registers for
  }
  float q[sub_block], k[sub_block], after = 1.0f;
#pragma unroll
  for (int s = 1; s < num_sub_blocks; ++s) {
    if (s > block) after *= shared.totals[s * slice + column];
  }
  decay = 1.0f;
#pragma unroll
  for (int j = sub_block - 1; j >= 0; --j) {
    const int at = (first + j) * leading + column;
    const bool valid = first + j < count;
    shared.to_state[at] = valid ? decay * after * shared.to_state[at] : 0.0f;
    float down = valid ? decay * shared.to_chunk[at] : 0.0f;
    q[j] = part.q[j], k[j] = part.k[j];
#pragma unroll
    for (int i = j + 1; i < sub_block; ++i) {
      q[i] *= part.alpha[j + 1], k[i] *= part.alpha[j + 1];
      down = fmaf(d_aqk[i * sub_block + j], q[i], down);
      down = fmaf(d_a[i * sub_block + j], k[i], down);
    }
    shared.to_chunk[at] = down;
    __syncwarp();
    decay *= part.alpha[j];
  }
}

template <class E, bool fast>
__device__ __forceinline__ void write_gradients(const KdaParams& p, const Pair& pair, const Span& span,
                                                const Part& part, int block, int channel, int column,
                                                const GradientShared<E, fast>& shared) {
  constexpr int leading = GradientShared<E, fast>::sums;
  const int first = block * sub_block * leading + column;
  const auto carried = [&](int r) {  // by the decays between the chunk's tokens and the state before it
    const int at = first + r * leading;
    return fmaf(part.q[r], shared.dq[at], part.k[r] * (shared.up[at] - shared.to_chunk[at]));
  };
  float before = 0.0f, after = 0.0f;
#pragma unroll
  for (int r = 0; r < sub_block; ++r) {
    before = fmaf(part.k[r], shared.to_state[first + r * leading], before);
    after += carried(r);
  }
  shared.before[block * slice + column] = before;
  shared.after[block * slice + column] = after;
  __syncthreads();
  if (channel >= p.d_k) return;
  float d_g[sub_block];
  before = shared.through[column], after = 0.0f;
  for (int s = 0; s < block; ++s) before += shared.before[s * slice + column];
  for (int s = num_sub_blocks - 1; s > block; --s) after += shared.after[s * slice + column];
#pragma unroll
  for (int r = 0; r < sub_block; ++r) {
    d_g[r] = before;
    before = fmaf(part.k[r], shared.to_state[first + r * leading], before);
  }
  const int64_t last = span.begin + (block + 1) * sub_block - 1;
  const int count = span.count() - block * sub_block;
  float* dg = row_of<float>(p.dg, pair, last) + channel;
  E *dq = row_of<E>(p.dq, pair, last) + channel, *dk = row_of<E>(p.dk, pair, last) + channel;
#pragma unroll
  for (int r = sub_block - 1; r >= 0; --r, dg -= p.dg.token, dq -= p.dq.token, dk -= p.dk.token) {
    after += carried(r);
    if (r >= count) continue;
    const int at = first + r * leading;
    const float own = shared.own_d_aqk[(block * sub_block + r) * sub_block + r];
    *dg = d_g[r] + after;
    *dq = from_float<E>(p.scale * fmaf(own, part.k[r], shared.dq[at]));
    *dk = from_float<E>(fmaf(own, part.q[r], shared.up[at] + shared.to_state[at] + shared.to_chunk[at]));
  }
}

template <class E, bool fast>
__device__ __forceinline__ void gradients_of_slice(const KdaParams& p, const Pair& pair, const Span& span,
                                                   int first_channel, const Values<E, fast>& values,
                                                   const GradientShared<E, fast>& shared) {
  constexpr int wide = GradientShared<E, fast>::wide;
  const int thread = static_cast<int>(threadIdx.x), block = thread / slice, column = thread % slice;
  const int channel = first_channel + column, depth = fast ? 128 : p.v_padded;
  const int channels = p.k_padded - first_channel < slice ? p.k_padded - first_channel : slice;
  const E* state =
      has_state_before(span, p) ? slot_of<E>(p, p.states, pair, slot_before(span), first_channel) : nullptr;
  const E* d_state =
      has_gradient_after(span, p) ? slot_of<E>(p, p.d_states, pair, slot_after(span, p), first_channel) : nullptr;
  int state_leading = p.v_padded;
  if constexpr (fast) {
    if (state != nullptr) stage_rows(shared.state, wide, state, 128, 128, slice);
    if (d_state != nullptr) stage_rows(shared.d_state, wide, d_state, 128, 128, slice);
    lamina::cuda::cp_async_commit();
    state = state != nullptr ? shared.state : nullptr, d_state = d_state != nullptr ? shared.d_state : nullptr;
    state_leading = wide;
  }
  Part part;
  load_part<E>(p, pair, span, block * sub_block, channel, part);
  float even = 1.0f, odd = 1.0f;  // not a running product: the compiler would keep it all for later
#pragma unroll
  for (int r = 0; r < sub_block; r += 2) even *= part.alpha[r], odd *= part.alpha[r + 1];
  shared.totals[block * slice + column] = even * odd;
  if constexpr (fast) lamina::cuda::cp_async_wait<0>();
  __syncthreads();
  float sums[8][4];
  row_state_products(values, state, state_leading, depth, sums);
  down_state_products(values, d_state, state_leading, depth, shared);
  through_chunk(p, state, d_state, state_leading,
                p.decays + (pair.local * p.slots + slot_after(span, p)) * p.k_padded + first_channel, channels,
                shared.through);
  if constexpr (fast) __syncthreads();  // the states make room
  write_decayed(part, block, column, shared);
  __syncthreads();
  chunk_products(shared, sums);
  __syncthreads();
  load_part<E>(p, pair, span, block * sub_block, channel,
               part);  // again, so that no register holds it during the products
  diagonal_gradients(part, block, column, span.count(), shared);
  write_gradients(p, pair, span, part, block, channel, column, shared);
  __syncthreads();
}

template <class E, bool fast>
__global__ void __launch_bounds__(threads) gradients_kernel(const KdaParams p) {
  LAMINA_DYNAMIC_SHARED(unsigned char, memory);
  Carver carver{memory};
  const GradientShared<E, fast> shared(carver);
  const Pair pair = pair_of(p, blockIdx.x);
  const int64_t count = num_chunks(p.chunks, pair.batch);
  for (int64_t index = blockIdx.y; index < count; index += gridDim.y) {
    const Span span = span_of(p.chunks, pair.batch, index);
    const Values<E, fast> values = values_of(p, pair, span, shared);
    score_gradients(values, fast ? 128 : p.v_padded, span.count(), shared);
    beta_gradients(p, pair, span, values);
    for (int channel = 0; channel < p.k_padded; channel += slice)
      gradients_of_slice(p, pair, span, channel, values, shared);
  }
}

template <class E, bool fast>
void gradients(const KdaParams& p, cudaStream_t stream) {
  launch(gradients_kernel<E, fast>, chunk_grid(p), dim3(threads), shared_bytes<GradientShared<E, fast>>(), stream, p);
}

}  // namespace kda

void launch_kda_gradients(const KdaParams& params, cudaStream_t stream) {
  if (params.fast)
    kda::gradients<__nv_bfloat16, true>(params, stream);
  else if (params.bf16)
    kda::gradients<__nv_bfloat16, false>(params, stream);
  else
    kda::gradients<float, false>(params, stream);
}

}  // namespace lamina::ops::cuda
