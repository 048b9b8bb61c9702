// The gradients of causal attention on tensor cores, as FlashAttention-2 has them (Dao, arXiv 2307.08691), in two
// kernels without atomics, so that sums have one order: one block for 64 keys walks over the queries and keeps dk and
// dv, one block for 64 queries walks over the keys and keeps dq. Both compute S = q k^T and dP = do v^T anew, P =
// exp(scale S - lse), dS = P (dP - delta).
//
// Limit: arithmetic. For each allowed pair and head 4 (d_qk + d_v) + 2 (2 d_qk + d_v) = 2 (4 d_qk + 3 d_v) FLOP:
// seven products, of which the five of a single kernel, 2 (3 d_qk + 2 d_v), count as useful (at 192, 128: 72 %; the
// rest is the price of a fixed order). mma.sync reaches some 60-65 % of the 990 TFLOP/s that H200 has with wgmma.
// What is done to stay near it: the four warps of a block form 2 x 2 over the 64 x 64 pairs, and again over rows and
// columns of every gradient: with 32 rows a warp, an operand from shared memory feeds four products, and ldmatrix
// (136 of 512 bytes a warp and tile in the first kernel, 544 cycles of the banks) keeps pace with the products (516
// cycles). P and dS change hands through shared memory. Two blocks of 102 KiB or 93 KiB share a multiprocessor: one
// waits at a barrier while the other multiplies. Every load travels during a product that does not need it. The
// widest heads (up to 256) take eight warps, 2 x 4, and one block.
#include "core/ops/attention/kernel_tile.h"

namespace lamina::ops::cuda {
namespace {

constexpr int tile = attention_tile;

// d_qk, d_v: padded widths. across: warps side by side over keys or columns; 2 above one another over rows.
template <int d_qk, int d_v, int across>
struct Shape {
  static constexpr int threads = 2 * across * warp_size, blocks = across == 2 ? 2 : 1;
  static constexpr int pairs8 = tile / across / 8;                      // a warp's columns of pairs, in eights
  static constexpr int qk8 = d_qk / across / 8, v8 = d_v / across / 8;  // a warp's columns of gradients
  static constexpr int operands = 2 * tile_size(tile, d_qk) + 2 * tile_size(tile, d_v);  // q, k, do, v
  static constexpr size_t keys_bytes = sizeof(Bf16) * (operands + 2 * tile_size(tile, tile)) + sizeof(float) * 2 * tile;
  static constexpr size_t queries_bytes = sizeof(Bf16) * (operands + tile_size(tile, tile));
};

// Where a warp stands: its 32 rows and its share of the columns.
struct Place {
  int down, along, lane;  // along: 0 .. across - 1
  __device__ __forceinline__ Place()
      : down(static_cast<int>(threadIdx.x) / warp_size % 2),
        along(static_cast<int>(threadIdx.x) / (2 * warp_size)),
        lane(static_cast<int>(threadIdx.x) % warp_size) {}
};

// The rows of a tile times the rows of another: pairs += a b^T.
template <int width, int columns8>
__device__ __forceinline__ void add_pairs(float (&pairs)[2][columns8][4], const Fragments<width>& a,
                                          const Fragments<width>& b) {
  multiply_add<width / 16>(
      pairs, [&](uint32_t(&f)[4], int g, int step) { a.load(f, 16 * g, 16 * step); },
      [&](uint32_t(&f)[4], int n, int step) { b.load(f, 16 * n, 16 * step); });
}

// A gradient of keys: the transpose of a tile of pairs times the rows of another tile.
template <int width, int columns8>
__device__ __forceinline__ void add_transposed(float (&sums)[2][columns8][4], const Fragments<tile>& pairs,
                                               const Fragments<width>& rows) {
  multiply_add<tile / 16>(
      sums, [&](uint32_t(&f)[4], int g, int step) { pairs.load_trans(f, 16 * step, 16 * g); },
      [&](uint32_t(&f)[4], int n, int step) { rows.load_trans(f, 16 * step, 16 * n); });
}

// A gradient of queries.
template <int width, int columns8>
__device__ __forceinline__ void add_product(float (&sums)[2][columns8][4], const Fragments<tile>& pairs,
                                            const Fragments<width>& rows) {
  multiply_add<tile / 16>(
      sums, [&](uint32_t(&f)[4], int g, int step) { pairs.load(f, 16 * g, 16 * step); },
      [&](uint32_t(&f)[4], int n, int step) { rows.load_trans(f, 16 * step, 16 * n); });
}

// s becomes P. lse2: of the thread's rows [g][r]. query, key: of the thread's first element.
template <int columns8>
__device__ __forceinline__ void probabilities(float (&s)[2][columns8][4], const float (&lse2)[2][2],
                                              const AttentionParams& p, bool masked, int query, int key) {
  const auto [factor, negative] = exponent_of(p.scale);
  if (negative) negate(s);
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int n = 0; n < columns8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) s[g][n][2 * r + e] = exp2f(fmaf(s[g][n][2 * r + e], factor, -lse2[g][r]));
  if (!masked) return;
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = query + 16 * g + 8 * r, start = start_of(p, i);
#pragma unroll
      for (int n = 0; n < columns8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int j = key + 8 * n + e;
          if (j > i || j < start) s[g][n][2 * r + e] = 0.0f;
        }
    }
}

template <int columns8>
__device__ __forceinline__ void pack(uint32_t (&packed)[2][columns8][2], const float (&pairs)[2][columns8][4]) {
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) packed[g][n][r] = pack_bf16(pairs[g][n][2 * r], pairs[g][n][2 * r + 1]);
}

// dp becomes dS.
template <int columns8>
__device__ __forceinline__ void times(float (&dp)[2][columns8][4], const float (&probability)[2][columns8][4],
                                      const float (&delta)[2][2]) {
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) dp[g][n][e] = probability[g][n][e] * (dp[g][n][e] - delta[g][e / 2]);
}
// The same with probabilities that were rounded to save registers, as the product for dv has them.
template <int columns8>
__device__ __forceinline__ void times_packed(float (&dp)[2][columns8][4], const uint32_t (&packed)[2][columns8][2],
                                             const float (&delta)[2][2]) {
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float* const pair = &dp[g][n][2 * r];
        pair[0] = __uint_as_float(packed[g][n][r] << 16) * (pair[0] - delta[g][r]);
        pair[1] = __uint_as_float(packed[g][n][r] & 0xffff0000u) * (pair[1] - delta[g][r]);
      }
}

// A query's row of [batch, heads, tiles * 64].
__device__ __forceinline__ const float* statistics(const float* values, const AttentionParams& p, int query) {
  return values + ((static_cast<int64_t>(blockIdx.z) * p.heads + blockIdx.y) * p.tiles) * tile + query;
}

// Everything that a block of keys reads anew for every tile of queries and needs before do.
template <int d_qk, int threads>
__device__ __forceinline__ void load_queries(Bf16* q_tile, float* stats, const HeadRows& q, const AttentionParams& p,
                                             int query) {
  load_tile<d_qk, tile, threads>(q_tile, q, query);
  const int n = static_cast<int>(threadIdx.x);
  if (n < tile / 2) {  // 16 packs of 4 floats each
    const float* from = statistics(n < tile / 4 ? p.lse2 : p.delta, p, query);
    cp_async_16(stats + 4 * n, from + 4 * (n % (tile / 4)), 16);
  }
  cp_async_commit();
}

__device__ __forceinline__ void rows_of(float (&values)[2][2], const float* of_tile) {
#pragma unroll
  for (int g = 0; g < 2; ++g)
#pragma unroll
    for (int r = 0; r < 2; ++r) values[g][r] = of_tile[16 * g + 8 * r];
}

template <int d_qk, int d_v, int across>
__global__ void __launch_bounds__(Shape<d_qk, d_v, across>::threads, Shape<d_qk, d_v, across>::blocks)
    keys_gradients(const AttentionParams p) {
  using S = Shape<d_qk, d_v, across>;
  LAMINA_DYNAMIC_SHARED(Bf16, shared);
  Bf16 *const q_tile = shared, *const k_tile = q_tile + tile_size(tile, d_qk),
              *const do_tile = k_tile + tile_size(tile, d_qk), *const v_tile = do_tile + tile_size(tile, d_v),
              *const p_tile = v_tile + tile_size(tile, d_v), *const ds_tile = p_tile + tile_size(tile, tile);
  float* const stats = reinterpret_cast<float*>(ds_tile + tile_size(tile, tile));  // lse2, delta
  const Place at;
  const int first_key = static_cast<int>(blockIdx.x) * tile;  // the first have the most queries
  const int row0 = 32 * at.down, pair0 = at.along * (tile / across), qk0 = at.along * (d_qk / across),
            v0 = at.along * (d_v / across);
  const HeadRows q = head_rows(p.q, p, p.d_qk), d_o = head_rows(p.d_o, p, p.d_v);
  load_tile<d_qk, tile, S::threads>(k_tile, head_rows(p.k, p, p.d_qk), first_key);
  load_tile<d_v, tile, S::threads>(v_tile, head_rows(p.v, p, p.d_v), first_key);
  load_queries<d_qk, S::threads>(q_tile, stats, q, p, first_key);
  float dk[2][S::qk8][4], dv[2][S::v8][4];
  clear(dk);
  clear(dv);
  for (int query = first_key;;) {
    cp_async_wait<0>();
    __syncthreads();  // q is here; do, P and dS of the tile before are used
    load_tile<d_v, tile, S::threads>(do_tile, d_o, query);
    cp_async_commit();
    const bool masked = query == first_key || start_of(p, min(query + tile, p.tokens) - 1) > first_key;
    float s[2][S::pairs8][4], dp[2][S::pairs8][4], of_rows[2][2];
    uint32_t packed[2][S::pairs8][2];
    clear(s);
    add_pairs<d_qk>(s, {q_tile, row0, 0, Second::down}, {k_tile, pair0, 0, Second::right});
    rows_of(of_rows, stats + row0 + at.lane / 4);
    probabilities(s, of_rows, p, masked, query + row0 + at.lane / 4, first_key + pair0 + 2 * (at.lane % 4));
    to_tile<tile>(p_tile, s, 1.0f, row0, pair0);
    pack(packed, s);
    cp_async_wait<0>();
    __syncthreads();  // do and P are here
    clear(dp);
    add_pairs<d_v>(dp, {do_tile, row0, 0, Second::down}, {v_tile, pair0, 0, Second::right});
    rows_of(of_rows, stats + tile + row0 + at.lane / 4);
    times_packed(dp, packed, of_rows);
    to_tile<tile>(ds_tile, dp, 1.0f, row0, pair0);
    __syncthreads();  // dS is here
    add_transposed<d_qk>(dk, {ds_tile, 0, row0, Second::right}, {q_tile, 0, qk0, Second::down});
    __syncthreads();  // q is used
    query += tile;
    const bool more =
        query < p.tokens && start_of(p, query) < first_key + tile;  // later documents see none of these keys
    if (more) load_queries<d_qk, S::threads>(q_tile, stats, q, p, query);
    add_transposed<d_v>(dv, {p_tile, 0, row0, Second::right}, {do_tile, 0, v0, Second::down});
    if (!more) break;
  }
  to_tile<d_qk>(k_tile, dk, p.scale, row0, qk0);
  to_tile<d_v>(v_tile, dv, 1.0f, row0, v0);
  __syncthreads();
  store_tile<d_qk, tile, S::threads>(k_tile, head_rows(p.dk, p, p.d_qk), first_key, static_cast<int>(threadIdx.x));
  store_tile<d_v, tile, S::threads>(v_tile, head_rows(p.dv, p, p.d_v), first_key, static_cast<int>(threadIdx.x));
}

template <int d_qk, int d_v, int across>
__global__ void __launch_bounds__(Shape<d_qk, d_v, across>::threads, Shape<d_qk, d_v, across>::blocks)
    queries_gradient(const AttentionParams p) {
  using S = Shape<d_qk, d_v, across>;
  LAMINA_DYNAMIC_SHARED(Bf16, shared);
  Bf16 *const q_tile = shared, *const k_tile = q_tile + tile_size(tile, d_qk),
              *const do_tile = k_tile + tile_size(tile, d_qk), *const v_tile = do_tile + tile_size(tile, d_v),
              *const ds_tile = v_tile + tile_size(tile, d_v);
  const Place at;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * tile;  // the last have the most keys
  const int last_query = min(first_query + tile, p.tokens) - 1;
  const int row0 = 32 * at.down, pair0 = at.along * (tile / across), qk0 = at.along * (d_qk / across);
  const HeadRows k = head_rows(p.k, p, p.d_qk), v = head_rows(p.v, p, p.d_v);
  const int latest_start = start_of(p, last_query);
  int key = start_of(p, first_query) / tile * tile;
  load_tile<d_qk, tile, S::threads>(q_tile, head_rows(p.q, p, p.d_qk), first_query);
  load_tile<d_v, tile, S::threads>(do_tile, head_rows(p.d_o, p, p.d_v), first_query);
  load_tile<d_v, tile, S::threads>(v_tile, v, key);
  cp_async_commit();
  load_tile<d_qk, tile, S::threads>(k_tile, k, key);
  cp_async_commit();
  float lse2[2][2], delta[2][2], dq[2][S::qk8][4];
  rows_of(lse2, statistics(p.lse2, p, first_query + row0 + at.lane / 4));
  rows_of(delta, statistics(p.delta, p, first_query + row0 + at.lane / 4));
  clear(dq);
  for (;; key += tile) {
    cp_async_wait<1>();
    __syncthreads();  // v is here
    float s[2][S::pairs8][4], dp[2][S::pairs8][4];
    clear(dp);
    add_pairs<d_v>(dp, {do_tile, row0, 0, Second::down}, {v_tile, pair0, 0, Second::right});
    cp_async_wait<0>();
    __syncthreads();  // k is here, v is used, and so is dS of the tile before
    const bool more = key + tile <= last_query;
    if (more) load_tile<d_v, tile, S::threads>(v_tile, v, key + tile);
    cp_async_commit();
    clear(s);
    add_pairs<d_qk>(s, {q_tile, row0, 0, Second::down}, {k_tile, pair0, 0, Second::right});
    probabilities(s, lse2, p, key == first_query || key < latest_start, first_query + row0 + at.lane / 4,
                  key + pair0 + 2 * (at.lane % 4));
    times(dp, s, delta);
    to_tile<tile>(ds_tile, dp, 1.0f, row0, pair0);
    __syncthreads();  // dS is here
    add_product<d_qk>(dq, {ds_tile, row0, 0, Second::down}, {k_tile, 0, qk0, Second::down});
    if (!more) break;
    __syncthreads();  // k is used
    load_tile<d_qk, tile, S::threads>(k_tile, k, key + tile);
    cp_async_commit();
  }
  to_tile<d_qk>(q_tile, dq, p.scale, row0, qk0);
  __syncthreads();
  store_tile<d_qk, tile, S::threads>(q_tile, head_rows(p.dq, p, p.d_qk), first_query, static_cast<int>(threadIdx.x));
}

template <int d_qk, int d_v, int across>
void run(const AttentionParams& p, cudaStream_t stream) {
  using S = Shape<d_qk, d_v, across>;
  const dim3 grid(static_cast<unsigned>(p.tiles), static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
  launch(keys_gradients<d_qk, d_v, across>, grid, dim3(S::threads), S::keys_bytes, stream, p);
  launch(queries_gradient<d_qk, d_v, across>, grid, dim3(S::threads), S::queries_bytes, stream, p);
}

}  // namespace

void launch_attention_backward_tensor(const AttentionParams& p, cudaStream_t stream) {
  if (p.d_qk <= 64 && p.d_v <= 64) return run<64, 64, 2>(p, stream);
  if (p.d_qk <= 128 && p.d_v <= 128) return run<128, 128, 2>(p, stream);
  if (p.d_qk <= 192 && p.d_v <= 128) return run<192, 128, 2>(p, stream);
  run<256, 256, 4>(p, stream);
}

}  // namespace lamina::ops::cuda
