// Causal attention on tensor cores (FlashAttention-2, Dao, arXiv 2307.08691): a block has 4 warps and a tile of 128
// queries, and walks over the keys in tiles of 32. A warp owns 32 of the queries outright, so the online softmax
// needs no word between warps, and its probabilities go from the accumulators of the first product straight into the
// operands of the second. (Heads up to 64 wide: 64 keys; above 128: 64 queries, 16 a warp. All as the registers
// allow: 64 x 128 pairs would spill at d_v 128.)
//
// Limit: arithmetic. 2 (d_qk + d_v) FLOP for each allowed pair and head, that is T^2 (d_qk + d_v) a head and
// sequence. A key's 640 bytes (192, 128) come from L2 once for 128 queries: 128 FLOP a byte. mma.sync reaches some
// 60-65 % of the 990 TFLOP/s that H200 has with wgmma. What is done to stay near it: 32 queries a warp, so that a
// key's operand from shared memory feeds four products (for 32 keys ldmatrix takes the banks 256 cycles a warp, the
// products the tensor cores 258); two blocks of 71 KiB on a multiprocessor, one computing its softmax while the other
// multiplies; v travels during q k^T and the next keys during softmax and p v, with two barriers a tile; tiles above
// the diagonal or before all documents are never visited, and only tiles on an edge are masked; the longest tiles
// start first.
#include "core/ops/attention/kernel_tile.h"

namespace lamina::ops::cuda {
namespace {

constexpr int num_warps = 4, num_threads = num_warps * warp_size;

// d_qk, d_v: padded widths. groups: of 16 queries, for each warp. keys: of a tile.
template <int d_qk, int d_v, int groups, int keys>
struct Shape {
  static constexpr int queries = num_warps * groups * 16;
  static constexpr size_t shared_bytes = sizeof(Bf16) * (tile_size(queries + keys, d_qk) + tile_size(keys, d_v));
  static_assert(d_v <= d_qk);  // outputs are staged where the queries were
};

// What a thread knows of its rows: lane / 4 and 8 on, of every group.
template <int groups>
struct RowState {
  float largest[groups][2], sum[groups][2];  // of the thread's columns only: the sum
};

// Sets pairs to -infinity that are not allowed. row, key: of the thread's first element. The queries are those of the last tokens.
template <int groups, int keys8>
__device__ __forceinline__ void mask(float (&s)[groups][keys8][4], const AttentionParams& p, int row, int key) {
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = row + 16 * g + 8 * r, start = start_of(p, query), last = query + p.keys - p.tokens;
#pragma unroll
      for (int n = 0; n < keys8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = key + 8 * n + e;
          if (j > last || j < start) s[g][n][2 * r + e] = -INFINITY;
        }
    }
}

// One tile's step of the online softmax: s becomes probabilities relative to the largest logit so far, o is rescaled
// to it. packed[g][n][r]: row r's two of 8 columns.
template <int groups, int keys8, int columns8>
__device__ __forceinline__ void softmax_step(const float (&s)[groups][keys8][4], uint32_t (&packed)[groups][keys8][2],
                                             float (&o)[groups][columns8][4], RowState<groups>& state, float factor) {
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = state.largest[g][r];
#pragma unroll
      for (int n = 0; n < keys8; ++n) largest = fmaxf(largest, fmaxf(s[g][n][2 * r], s[g][n][2 * r + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 2));
      const float base = largest == -INFINITY ? 0.0f : largest * factor;  // a row without a key yet stays zero
      const float rescale = exp2f(fmaf(state.largest[g][r], factor, -base));
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < keys8; ++n) {
        const float left = exp2f(fmaf(s[g][n][2 * r], factor, -base));
        const float right = exp2f(fmaf(s[g][n][2 * r + 1], factor, -base));
        packed[g][n][r] = pack_bf16(left, right);
        sum += left + right;
      }
      state.largest[g][r] = largest;
      state.sum[g][r] = fmaf(state.sum[g][r], rescale, sum);
#pragma unroll
      for (int n = 0; n < columns8; ++n) {
        o[g][n][2 * r] *= rescale;
        o[g][n][2 * r + 1] *= rescale;
      }
    }
}

// Divides by the sums and writes o, lse and the tile's largest logit. own: the warp's rows of the queries' tile,
// whose content nobody needs any more.
template <int d_v, int groups>
__device__ __forceinline__ void finish(const AttentionParams& p, float (&o)[groups][d_v / 8][4],
                                       RowState<groups>& state, Bf16* own, int first_query, float factor) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t head = static_cast<int64_t>(blockIdx.z) * p.heads + blockIdx.y;
  float largest = -INFINITY;
#pragma unroll
  for (int g = 0; g < groups; ++g)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = state.sum[g][r];
      sum += __shfl_xor_sync(full_warp, sum, 1);
      sum += __shfl_xor_sync(full_warp, sum, 2);
      const int query = first_query + 16 * g + 8 * r + lane / 4;
      if (query < p.tokens) {
        constexpr float ln_2 = 0.6931471805599453f;
        if (lane % 4 == 0) p.lse[head * p.tokens + query] = ln_2 * fmaf(state.largest[g][r], factor, log2f(sum));
        largest = fmaxf(largest, state.largest[g][r]);
      }
      const float inverse = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < d_v / 8; ++n) {
        o[g][n][2 * r] *= inverse;
        o[g][n][2 * r + 1] *= inverse;
      }
    }
  to_tile<d_v>(own, o, 1.0f, 0, 0);
  __syncwarp();
  store_tile<d_v, 16 * groups, warp_size>(own, head_rows(p.o, p, p.d_v), first_query, lane);
  if (p.max_logit == nullptr) return;
  __shared__ float of_warps[num_warps];
  largest = warp_max(largest);
  if (lane == 0) of_warps[threadIdx.x / warp_size] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 0; w < num_warps; ++w) largest = fmaxf(largest, of_warps[w]);
  const int tile = (static_cast<int>(gridDim.x - 1 - blockIdx.x)) * (num_warps * groups * 16 / attention_tile);
  for (int t = 0; t < num_warps * groups * 16 / attention_tile; ++t)
    if (tile + t < p.tiles) p.tile_max[head * p.tiles + tile + t] = largest * fabsf(p.scale);
}

template <int d_qk, int d_v, int groups, int keys>
__global__ void __launch_bounds__(num_threads, 2) forward(const AttentionParams p) {
  constexpr int queries = Shape<d_qk, d_v, groups, keys>::queries;
  LAMINA_DYNAMIC_SHARED(Bf16, shared);
  Bf16 *const q_tile = shared, *const k_tile = q_tile + tile_size(queries, d_qk),
              *const v_tile = k_tile + tile_size(keys, d_qk);
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * queries;  // the heaviest first
  const int last_query = min(first_query + queries, p.tokens) - 1, warp_query = first_query + warp * groups * 16;
  const int last_key = last_query + p.keys - p.tokens, diagonal = warp_query + p.keys - p.tokens;
  const HeadRows k = key_rows(p.k, p, p.d_qk), v = key_rows(p.v, p, p.d_v);
  const auto [factor, negative] = exponent_of(p.scale);
  const int latest_start = start_of(p, last_query);
  int key = start_of(p, first_query) / keys * keys;
  load_tile<d_qk, queries, num_threads>(q_tile, head_rows(p.q, p, p.d_qk), first_query);
  load_tile<d_qk, keys, num_threads>(k_tile, k, key);
  cp_async_commit();
  const Fragments<d_qk> q_rows(q_tile, warp * groups * 16, 0, Second::down), k_rows(k_tile, 0, 0, Second::right);
  const Fragments<d_v> v_rows(v_tile, 0, 0, Second::down);
  float o[groups][d_v / 8][4];
  clear(o);
  RowState<groups> state;
#pragma unroll
  for (int g = 0; g < groups; ++g)
    for (int r = 0; r < 2; ++r) state.largest[g][r] = -INFINITY, state.sum[g][r] = 0.0f;
  for (; key <= last_key; key += keys) {
    const bool busy = key < diagonal + groups * 16;  // else all of the tile lies above the warp's diagonal
    cp_async_wait<0>();
    __syncthreads();  // the keys are here, and the values before are used
    load_tile<d_v, keys, num_threads>(v_tile, v, key);
    cp_async_commit();
    float s[groups][keys / 8][4];
    clear(s);
    if (busy) {
      multiply_add<d_qk / 16>(
          s, [&](uint32_t(&a)[4], int g, int step) { q_rows.load(a, 16 * g, 16 * step); },
          [&](uint32_t(&b)[4], int n, int step) { k_rows.load(b, 16 * n, 16 * step); });
    }
    cp_async_wait<0>();
    __syncthreads();  // the values are here, and the keys are used
    if (key + keys <= last_key) load_tile<d_qk, keys, num_threads>(k_tile, k, key + keys);
    cp_async_commit();
    if (!busy) continue;
    if (negative) negate(s);
    if (key + keys > diagonal || key < latest_start) mask(s, p, warp_query + lane / 4, key + 2 * (lane % 4));
    uint32_t packed[groups][keys / 8][2];
    softmax_step(s, packed, o, state, factor);
    multiply_add<keys / 16>(
        o,
        [&](uint32_t(&a)[4], int g, int step) {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] = packed[g][2 * step + i / 2][i % 2];
        },
        [&](uint32_t(&b)[4], int n, int step) { v_rows.load_trans(b, 16 * step, 16 * n); });
  }
  finish<d_v>(p, o, state, q_tile + tile_size(warp * groups * 16, d_qk), warp_query, factor);
}

template <int d_qk, int d_v, int groups, int keys>
void run(const AttentionParams& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.tokens, Shape<d_qk, d_v, groups, keys>::queries), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(p.batch));
  launch(forward<d_qk, d_v, groups, keys>, grid, dim3(num_threads), Shape<d_qk, d_v, groups, keys>::shared_bytes,
         stream, p);
}

}  // namespace

void launch_attention_forward_tensor(const AttentionParams& p, cudaStream_t stream) {
  if (p.d_qk <= 64 && p.d_v <= 64) return run<64, 64, 2, 64>(p, stream);
  if (p.d_qk <= 128 && p.d_v <= 128) return run<128, 128, 2, 32>(p, stream);
  if (p.d_qk <= 192 && p.d_v <= 128) return run<192, 128, 2, 32>(p, stream);
  run<256, 256, 1, 64>(p, stream);
}

}  // namespace lamina::ops::cuda
