// Phase 1 of the Attention Residuals read and its backward on tensor cores: bf16 sources (up to 16) and queries (8 a launch).
//
// Limit: bytes. Forward reads n rows and writes Q per token; backward reads n + Q rows and, in fp32, reads and writes n. Per token and SM
// an H200 has about 37 bytes a nanosecond: 10 sources and 6 queries of 2304 are 2 microseconds forward, 4 to 7 backward, in which the
// vector units would be busy with the products alone. On tensor cores the products take less than half of that.
// How: one block per SM takes tiles of tokens from a counter and goes from token to token. So a block that starts late, because NCCL's
// hold its SM, leaves its share to the others; sums over tokens are kept per tile, which fixes their order. cp.async brings the rows of
// the tokens to come into shared memory (2 to 4 stages) while one is worked on, so each row is read once. Each of the 16 warps has a
// slice of the columns, for every product of the token; sums over columns meet in shared memory. As in attention, sources are keys and
// values at once: fragments come by ldmatrix from one copy. What is fp32 (w (.) g, softmax weights, coefficients) is split into bf16
// parts, so that a product has fp32's accuracy: sources and dh are bf16 as they are. Over all tokens of a block the forward keeps the
// parts of w (.) g in registers, the backward over those of a tile its sums for the gradient of it; there w (.) g comes from the L2 cache
// (8 fp32 rows a token).
#include "core/ops/attn_res/kernel_row.h"
#include "core/ops/attn_res/kernels.h"

namespace lamina::ops::cuda {
namespace {

using lamina::cuda::cp_async_16;
using lamina::cuda::cp_async_commit;
using lamina::cuda::cp_async_wait;
using lamina::cuda::ldmatrix_x4;
using lamina::cuda::ldmatrix_x4_trans;
using lamina::cuda::mma_bf16;
using bf16 = __nv_bfloat16;

constexpr int tile_sources = 16, tile_queries = 8, tile = tile_sources * tile_queries;
constexpr int num_warps = 16, num_threads = num_warps * warp_size;
constexpr int max_stages = 4, max_steps = 16;  // a step: 16 columns of a warp
constexpr int row_padding = 8;                 // elements; keeps the 8 rows of a matrix in different banks

// Two numbers as bf16, and what that left of them.
__device__ __forceinline__ uint32_t take_bf16(float& low, float& high) {
  const uint32_t taken = pack_bf16(low, high);
  low -= __uint_as_float(taken << 16);
  high -= __uint_as_float(taken & 0xffff0000u);
  return taken;
}

// The columns of this warp, and where its lanes stand in fragments.
struct Slice {
  int lane, warp, group, pair;
  int first, count;  // steps

  __device__ explicit Slice(int dim) {
    lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
    group = lane / 4, pair = lane % 4;
    const int steps = dim / 16, per_warp = (steps + num_warps - 1) / num_warps;
    first = warp * per_warp;
    count = max(0, min(per_warp, steps - first));
  }
};

// Which 16 bytes of a token's rows a thread copies: the same column of every `step`-th row.
struct CopyPlan {
  int first_row, step, column;

  __device__ explicit CopyPlan(int dim) {
    const int packs = dim / 8;
    step = num_threads / packs;
    first_row = static_cast<int>(threadIdx.x) / packs, column = static_cast<int>(threadIdx.x) % packs * 8;
    if (first_row >= step) first_row = 1 << 20;
  }
};

__device__ __forceinline__ void wait_for_oldest(int stages) {
  if (stages == 2)
    cp_async_wait<0>();
  else if (stages == 3)
    cp_async_wait<1>();
  else
    cp_async_wait<2>();
}

// The tokens of a block, which thread `fetcher` takes from the counter; the end is any number from p.tokens on.
struct alignas(16) Work {  // what follows is read 16 bytes at a time
  int64_t in_stage[max_stages];
  int64_t to_load;
};
constexpr int fetcher = num_threads - 1;  // idle while the first warps find weights

template <class Params>
__device__ __forceinline__ int64_t take_tile(const Params& p, int tile_tokens) {
  return static_cast<int64_t>(atomicAdd(p.work_counter, 1)) * tile_tokens;
}
template <class Params>
__device__ __forceinline__ int64_t token_after(int64_t token, const Params& p, int tile_tokens) {
  if (token >= p.tokens) return token;
  return (token + 1) % tile_tokens == 0 || token + 1 >= p.tokens ? take_tile(p, tile_tokens) : token + 1;
}
// Of fetcher, before the first token: those of all stages but the last.
template <class Params>
__device__ __forceinline__ void begin_work(Work& work, const Params& p, int stages, int tile_tokens) {
  int64_t token = take_tile(p, tile_tokens);
  for (int stage = 0; stage + 1 < stages; ++stage) {
    work.in_stage[stage] = token;
    token = token_after(token, p, tile_tokens);
  }
  work.to_load = token;
}

struct ForwardShared {
  Work work;
  float products[num_warps][tile];  // [query][source]
  float squares[num_warps][tile_sources];
  float weights[tile];  // [query][source]
};

__device__ __forceinline__ void copy_sources(bf16* rows, const Phase1ForwardParams& p, const CopyPlan& plan,
                                             int64_t token) {
  for (int j = plan.first_row; j < p.num_sources; j += plan.step)
    cp_async_16(rows + j * (p.dim + row_padding) + plan.column, row_of<const bf16>(p.sources[j], token) + plan.column);
}

// w (.) g of query `group`, as the B fragments of a step in three parts.
__device__ __forceinline__ void load_keys(uint32_t (&parts)[3][2], const Phase1ForwardParams& p, const Slice& slice,
                                          int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float low = 0.0f, high = 0.0f;
    if (slice.group < p.num_queries) {
      const float* from = p.weighted + static_cast<int64_t>(slice.group) * p.dim + column + 8 * half + 2 * slice.pair;
      low = from[0], high = from[1];
    }
#pragma unroll
    for (int part = 0; part < 3; ++part) parts[part][half] = take_bf16(low, high);
  }
}

// Products with the queries, and of each source with itself: the diagonal of V V^T, whose second operand is the first's registers.
template <int STEPS>
__device__ __forceinline__ void forward_products(ForwardShared& shared, const bf16* rows,
                                                 const uint32_t (&keys)[STEPS][3][2], const Slice& slice, int pitch,
                                                 int num_sources) {
  float high[4] = {}, low[4] = {}, square[4] = {}, square_8[4] = {};
  const bf16* at = rows + min(slice.lane % 16, num_sources - 1) * pitch + slice.first * 16 + slice.lane / 16 * 8;
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (s >= slice.count) break;
    uint32_t a[4];
    ldmatrix_x4(a, at + s * 16);
    mma_bf16(high, a, keys[s][0]);
    mma_bf16(low, a, keys[s][1]);
    mma_bf16(square, a, {a[0], a[2]});
    mma_bf16(low, a, keys[s][2]);
    if (num_sources > 8) mma_bf16(square_8, a, {a[1], a[3]});
  }
  float* const products = shared.products[slice.warp];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    products[(2 * slice.pair + i % 2) * tile_sources + slice.group + i / 2 * 8] = high[i] + low[i];
  if (slice.group / 2 == slice.pair) {
    shared.squares[slice.warp][slice.group] = slice.group % 2 == 0 ? square[0] : square[1];
    shared.squares[slice.warp][slice.group + 8] = slice.group % 2 == 0 ? square_8[2] : square_8[3];
  }
}

// Thread q * 16 + j: source j of query q.
__device__ __forceinline__ void forward_softmax(ForwardShared& shared, const Phase1ForwardParams& p, int64_t token) {
  const int thread = static_cast<int>(threadIdx.x), query = thread / tile_sources, source = thread % tile_sources;
  float product = 0.0f, square = 0.0f;
#pragma unroll
  for (int warp = 0; warp < num_warps; ++warp) {
    product += shared.products[warp][thread];
    square += shared.squares[warp][source];
  }
  const bool is_source = source < p.num_sources, is_query = query < p.num_queries;
  const float rstd = rsqrtf(square / static_cast<float>(p.dim) + p.eps), logit = is_source ? product * rstd : -INFINITY;
  float largest = logit;
#pragma unroll
  for (int offset = tile_sources / 2; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, offset));
  const float weight = expf(logit - largest);
  float sum = weight;
#pragma unroll
  for (int offset = tile_sources / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(full_warp, sum, offset);
  shared.weights[thread] = is_source && is_query ? weight / sum : 0.0f;
  if (!is_source || !is_query) return;
  p.logit[query * p.logit_query_stride + source * p.logit_source_stride + token] = logit;
  if (query == 0) p.rstd[source * p.rstd_stride + token] = rstd;
  if (source == 0) p.lse[query * p.lse_stride + token] = largest + logf(sum);
}

// mean = weights V. Two neighbouring lanes exchange halves of two tiles, so that a warp writes whole sectors of 32 bytes.
template <int STEPS>
__device__ __forceinline__ void forward_means(const ForwardShared& shared, const bf16* rows,
                                              const Phase1ForwardParams& p, const Slice& slice, int64_t token) {
  uint32_t high[4] = {}, low[4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* const from = shared.weights + slice.group * tile_sources + 8 * half + 2 * slice.pair;
    float x = from[0], y = from[1];
    high[2 * half] = take_bf16(x, y);
    low[2 * half] = pack_bf16(x, y);
  }
  const int pitch = p.dim + row_padding, odd = slice.pair % 2;
  const bf16* const at =
      rows + min(slice.lane % 16, p.num_sources - 1) * pitch + slice.first * 16 + slice.lane / 16 * 8;
  bf16* const out = row_of<bf16>(p.mean[min(slice.group, p.num_queries - 1)], token) + slice.first * 16 + 8 * odd +
                    slice.pair / 2 * 4;
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (s >= slice.count) break;
    uint32_t b[4];
    ldmatrix_x4_trans(b, at + s * 16);
    float left[4] = {}, right[4] = {};
    mma_bf16(left, high, {b[0], b[1]});
    mma_bf16(right, high, {b[2], b[3]});
    mma_bf16(left, low, {b[0], b[1]});
    mma_bf16(right, low, {b[2], b[3]});
    const uint32_t mine_left = pack_bf16(left[0], left[1]), mine_right = pack_bf16(right[0], right[1]);
    const uint32_t other = __shfl_xor_sync(full_warp, odd ? mine_left : mine_right, 1);
    if (slice.group < p.num_queries)
      *reinterpret_cast<uint2*>(out + s * 16) = odd ? make_uint2(other, mine_right) : make_uint2(mine_left, other);
  }
}

template <int STEPS>
__global__ void __launch_bounds__(num_threads, 1)
    phase1_forward_tensor_kernel(const Phase1ForwardParams p, const int stages, const int tile_tokens) {
  LAMINA_DYNAMIC_SHARED(unsigned char, dynamic);
  ForwardShared& shared = *reinterpret_cast<ForwardShared*>(dynamic);
  bf16* const ring = reinterpret_cast<bf16*>(dynamic + sizeof(ForwardShared));
  const int pitch = p.dim + row_padding, stage_elements = p.num_sources * pitch;
  const Slice slice(p.dim);
  const CopyPlan plan(p.dim);
  uint32_t keys[STEPS][3][2];
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (s < slice.count) load_keys(keys[s], p, slice, (slice.first + s) * 16);
  }
  if (threadIdx.x == fetcher) begin_work(shared.work, p, stages, tile_tokens);
  __syncthreads();
  for (int stage = 0; stage + 1 < stages; ++stage) {
    const int64_t token = shared.work.in_stage[stage];
    if (token < p.tokens) copy_sources(ring + stage * stage_elements, p, plan, token);
    cp_async_commit();
  }
  for (int stage = 0;;) {
    const int64_t token = shared.work.in_stage[stage];
    if (token >= p.tokens) break;
    wait_for_oldest(stages);
    __syncthreads();  // this token's rows are here, and the stage of the one before is free
    const int free_stage = stage == 0 ? stages - 1 : stage - 1;
    const int64_t to_load = shared.work.to_load;
    if (to_load < p.tokens) copy_sources(ring + free_stage * stage_elements, p, plan, to_load);
    cp_async_commit();
    const bf16* const rows = ring + stage * stage_elements;
    forward_products<STEPS>(shared, rows, keys, slice, pitch, p.num_sources);
    __syncthreads();
    if (threadIdx.x == fetcher) {
      shared.work.in_stage[free_stage] = to_load;
      shared.work.to_load = token_after(to_load, p, tile_tokens);
    }
    if (threadIdx.x < tile) forward_softmax(shared, p, token);
    __syncthreads();
    forward_means<STEPS>(shared, rows, p, slice, token);
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
}

struct BackwardShared {
  Work work;
  float products[num_warps][tile];                     // [source][query]
  float coefficients[tile_sources][2 * tile_queries];  // a, then s rstd
  float along_source[tile_sources];                    // rstd^2 / dim sum_q s logit
};

__device__ __forceinline__ void copy_rows(bf16* rows, const Phase1BackwardParams& p, const CopyPlan& plan,
                                          int64_t token) {
  for (int r = plan.first_row; r < p.num_sources + p.num_queries; r += plan.step) {
    const Rows& from = r < p.num_sources ? p.sources[r] : p.dh[r - p.num_sources];
    cp_async_16(rows + r * (p.dim + row_padding) + plan.column, row_of<const bf16>(from, token) + plan.column);
  }
}

// <dh_q, v_j> over this warp's columns.
template <int STEPS>
__device__ __forceinline__ void backward_products(BackwardShared& shared, const bf16* rows,
                                                  const Phase1BackwardParams& p, const Slice& slice) {
  const int pitch = p.dim + row_padding;
  const bf16* const sources =
      rows + min(slice.lane % 16, p.num_sources - 1) * pitch + slice.first * 16 + slice.lane / 16 * 8;
  const bf16* const dh = rows + (p.num_sources + min(slice.lane % 8, p.num_queries - 1)) * pitch + slice.first * 16 +
                         slice.lane / 8 % 2 * 8;
  float product[4] = {};
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (s >= slice.count) break;
    uint32_t a[4], b[4];
    ldmatrix_x4(a, sources + s * 16);
    ldmatrix_x4(b, dh + s * 16);
    mma_bf16(product, a, {b[0], b[1]});
  }
  float* const out = shared.products[slice.warp] + slice.group * tile_queries + 2 * slice.pair;
  out[0] = product[0], out[1] = product[1];
  out[8 * tile_queries] = product[2], out[8 * tile_queries + 1] = product[3];
}

// What thread j * 8 + q needs to know of the token beforehand.
struct TokenStatistics {
  float logit = 0, rstd = 0, lse = 0, dh_dot_h = 0;
};
__device__ __forceinline__ TokenStatistics load_statistics(const Phase1BackwardParams& p, int64_t token) {
  const int query = static_cast<int>(threadIdx.x) % tile_queries, source = static_cast<int>(threadIdx.x) / tile_queries;
  if (source >= p.num_sources || query >= p.num_queries) return {};
  TokenStatistics out;
  out.logit = p.logit[query * p.logit_query_stride + source * p.logit_source_stride + token];
  out.rstd = p.rstd[source * p.rstd_stride + token];
  out.lse = p.lse_total[query][token];
  out.dh_dot_h = p.dh_dot_h[query][token];
  return out;
}

__device__ __forceinline__ void find_coefficients(BackwardShared& shared, const Phase1BackwardParams& p,
                                                  const TokenStatistics& known) {
  const int thread = static_cast<int>(threadIdx.x), query = thread % tile_queries, source = thread / tile_queries;
  float product = 0.0f;
#pragma unroll
  for (int warp = 0; warp < num_warps; ++warp) product += shared.products[warp][thread];
  const bool exists = source < p.num_sources && query < p.num_queries;
  const float a = exists ? expf(known.logit - known.lse) : 0.0f, s = exists ? a * (product - known.dh_dot_h) : 0.0f;
  float along = s * known.logit * known.rstd * known.rstd / static_cast<float>(p.dim);
#pragma unroll
  for (int offset = tile_queries / 2; offset > 0; offset /= 2) along += __shfl_xor_sync(full_warp, along, offset);
  shared.coefficients[source][query] = a;
  shared.coefficients[source][tile_queries + query] = s * known.rstd;
  if (query == 0) shared.along_source[source] = along;
}

// The second half of a step's B fragments: w (.) g of queries 2 pair, 2 pair + 1 in columns group and group + 8, in two parts.
__device__ __forceinline__ void load_weighted(uint32_t (&parts)[2][2], const Phase1BackwardParams& p,
                                              const Slice& slice, int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* const from =
        p.weighted + static_cast<int64_t>(2 * slice.pair) * p.dim + column + 8 * half + slice.group;
    float low = 2 * slice.pair < p.num_queries ? from[0] : 0.0f;
    float high = 2 * slice.pair + 1 < p.num_queries ? from[p.dim] : 0.0f;
    parts[half][0] = take_bf16(low, high);
    parts[half][1] = pack_bf16(low, high);
  }
}

// The operands of a token's last two products that do not depend on the column.
struct Fragments {
  uint32_t high[4], low[4];      // A: [source][a of 8 queries, s rstd of 8 queries]
  uint32_t t_high[2], t_low[2];  // B: s rstd, [source][query]
  float along[2];                // of sources group, group + 8

  __device__ Fragments(const BackwardShared& shared, const Slice& slice) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const from = shared.coefficients[slice.group + i % 2 * 8] + i / 2 * 8 + 2 * slice.pair;
      float x = from[0], y = from[1];
      high[i] = take_bf16(x, y);
      low[i] = pack_bf16(x, y);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = shared.coefficients[2 * slice.pair + 8 * half][tile_queries + slice.group];
      float y = shared.coefficients[2 * slice.pair + 8 * half + 1][tile_queries + slice.group];
      t_high[half] = take_bf16(x, y);
      t_low[half] = pack_bf16(x, y);
      along[half] = shared.along_source[slice.group + 8 * half];
    }
  }
};

// A gradient row of this lane: where its four columns of a step lie, and whether what is there counts.
struct GradientRow {
  float* at;  // null beyond the last source
  bool accumulate;

  __device__ GradientRow(const Phase1BackwardParams& p, const Slice& slice, int source, int64_t token) {
    const bool exists = source < p.num_sources;
    at = exists ? row_of<float>(p.dsources[source], token) + slice.first * 16 + slice.pair % 2 * 8 + slice.pair / 2 * 4
                : nullptr;
    accumulate = exists && p.accumulate[source];
  }
  __device__ __forceinline__ float4 before(int step) const {
    return accumulate ? *reinterpret_cast<const float4*>(at + step * 16) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  // Of two tiles this lane has two neighbouring columns each; with the neighbour's it has four of one.
  __device__ __forceinline__ void put(int step, const float2& left, const float2& right, const float4& was,
                                      bool odd) const {
    const float2 sent = odd ? left : right;
    const float x = __shfl_xor_sync(full_warp, sent.x, 1), y = __shfl_xor_sync(full_warp, sent.y, 1);
    if (at == nullptr) return;
    *reinterpret_cast<float4*>(at + step * 16) =
        odd ? make_float4(was.x + x, was.y + y, was.z + right.x, was.w + right.y)
            : make_float4(was.x + left.x, was.y + left.y, was.z + x, was.w + y);
  }
};

__device__ __forceinline__ float2 scaled_pair(const bf16* at, float factor) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(at);
  return make_float2(factor * __uint_as_float(pair << 16), factor * __uint_as_float(pair & 0xffff0000u));
}

// Steps whose old gradients are on their way while one is computed.
template <int STEPS>
constexpr int gradients_ahead = STEPS > 9 ? 1 : 2;

template <int STEPS>
__device__ __forceinline__ void backward_gradients(float (&sums)[STEPS][4], const BackwardShared& shared,
                                                   const bf16* rows, const GradientRow& row, const GradientRow& row_8,
                                                   float4 (&was)[gradients_ahead<STEPS>][2],
                                                   const Phase1BackwardParams& p, const Slice& slice) {
  constexpr int ahead = gradients_ahead<STEPS>;
  const Fragments known(shared, slice);
  const int pitch = p.dim + row_padding, last = p.num_sources - 1, start = slice.first * 16, lane = slice.lane;
  const bf16* const transposed = rows + min(lane % 8 + lane / 16 * 8, last) * pitch + start + lane / 8 % 2 * 8;
  const bf16* const dh = rows + (p.num_sources + min(lane % 8, p.num_queries - 1)) * pitch + start + lane / 8 % 2 * 8;
  const bf16* const own = rows + min(slice.group, last) * pitch + start + 2 * slice.pair;
  const bf16* const own_8 = rows + min(slice.group + 8, last) * pitch + start + 2 * slice.pair;
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (s >= slice.count) break;
    uint32_t v[4], b[4], wg[2][2];
    ldmatrix_x4_trans(v, transposed + s * 16);
    mma_bf16(sums[s], v, known.t_high);
    mma_bf16(sums[s], v, known.t_low);
    ldmatrix_x4_trans(b, dh + s * 16);
    load_weighted(wg, p, slice, start + s * 16);
    float2 out[2][2];  // [tile][row]
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 x = scaled_pair(own + s * 16 + 8 * half, -known.along[0]);
      const float2 y = scaled_pair(own_8 + s * 16 + 8 * half, -known.along[1]);
      float d[4] = {x.x, x.y, y.x, y.y};
      mma_bf16(d, known.low, {b[half], wg[half][0]});
      mma_bf16(d, {0u, 0u, known.high[2], known.high[3]}, {b[half], wg[half][1]});
      mma_bf16(d, known.high, {b[half], wg[half][0]});
      out[half][0] = make_float2(d[0], d[1]), out[half][1] = make_float2(d[2], d[3]);
    }
    const float4 was_0 = was[s % ahead][0], was_8 = was[s % ahead][1];
    if (s + ahead < slice.count) was[s % ahead][0] = row.before(s + ahead), was[s % ahead][1] = row_8.before(s + ahead);
    row.put(s, out[0][0], out[1][0], was_0, slice.pair % 2 != 0);
    if (p.num_sources > 8) row_8.put(s, out[0][1], out[1][1], was_8, slice.pair % 2 != 0);
  }
}

// A tile's sums for the gradient of w (.) g, which begin anew.
template <int STEPS>
__device__ __forceinline__ void put_sums(float (&sums)[STEPS][4], const Phase1BackwardParams& p, const Slice& slice,
                                         int64_t tile_index) {
  float* const out = p.partials + tile_index * p.partial_stride + static_cast<int64_t>(2 * slice.pair) * p.dim +
                     slice.first * 16 + slice.group;
#pragma unroll
  for (int s = 0; s < STEPS; ++s) {
    if (s >= slice.count) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (2 * slice.pair + i % 2 < p.num_queries) out[i % 2 * p.dim + s * 16 + i / 2 * 8] = sums[s][i];
      sums[s][i] = 0.0f;
    }
  }
}

template <int STEPS>
__global__ void __launch_bounds__(num_threads, 1)
    phase1_backward_tensor_kernel(const Phase1BackwardParams p, const int stages, const int tile_tokens) {
  LAMINA_DYNAMIC_SHARED(unsigned char, dynamic);
  BackwardShared& shared = *reinterpret_cast<BackwardShared*>(dynamic);
  bf16* const ring = reinterpret_cast<bf16*>(dynamic + sizeof(BackwardShared));
  const int stage_elements = (p.num_sources + p.num_queries) * (p.dim + row_padding);
  const Slice slice(p.dim);
  const CopyPlan plan(p.dim);
  float sums[STEPS][4] = {};
  if (threadIdx.x == fetcher) begin_work(shared.work, p, stages, tile_tokens);
  __syncthreads();
  for (int stage = 0; stage + 1 < stages; ++stage) {
    const int64_t token = shared.work.in_stage[stage];
    if (token < p.tokens) copy_rows(ring + stage * stage_elements, p, plan, token);
    cp_async_commit();
  }
  for (int stage = 0;;) {
    const int64_t token = shared.work.in_stage[stage];
    if (token >= p.tokens) break;
    TokenStatistics known;
    if (threadIdx.x < tile) known = load_statistics(p, token);
    const GradientRow row(p, slice, slice.group, token), row_8(p, slice, slice.group + 8, token);
    float4 was[gradients_ahead<STEPS>][2] = {};
#pragma unroll
    for (int s = 0; s < gradients_ahead<STEPS>; ++s) {
      if (s < slice.count) was[s][0] = row.before(s), was[s][1] = row_8.before(s);
    }
    wait_for_oldest(stages);
    __syncthreads();
    const int free_stage = stage == 0 ? stages - 1 : stage - 1;
    const int64_t to_load = shared.work.to_load;
    if (to_load < p.tokens) copy_rows(ring + free_stage * stage_elements, p, plan, to_load);
    cp_async_commit();
    const bf16* const rows = ring + stage * stage_elements;
    backward_products<STEPS>(shared, rows, p, slice);
    __syncthreads();
    if (threadIdx.x == fetcher) {
      shared.work.in_stage[free_stage] = to_load;
      shared.work.to_load = token_after(to_load, p, tile_tokens);
    }
    if (threadIdx.x < tile) find_coefficients(shared, p, known);
    __syncthreads();
    backward_gradients<STEPS>(sums, shared, rows, row, row_8, was, p, slice);
    if ((token + 1) % tile_tokens == 0 || token + 1 >= p.tokens) put_sums<STEPS>(sums, p, slice, token / tile_tokens);
    stage = stage + 1 == stages ? 0 : stage + 1;
  }
}

size_t shared_limit() {
  int device = 0, bytes = 0;
  lamina::cuda::check(cudaGetDevice(&device), "the current device");
  lamina::cuda::check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                      "a device's properties");
  return static_cast<size_t>(bytes);
}
size_t stage_bytes(int num_rows, int dim) {
  return static_cast<size_t>(num_rows) * static_cast<size_t>(dim + row_padding) * sizeof(bf16);
}
int num_stages(size_t fixed, size_t stage) {
  const size_t limit = shared_limit();
  const size_t stages = limit < fixed ? 0 : (limit - fixed) / stage;
  return static_cast<int>(stages < max_stages ? stages : max_stages);
}
bool fits(bool is_bf16, bool is_vector, int dim, int num_sources) {
  return is_bf16 && is_vector && dim % 16 == 0 && dim <= max_steps * 16 * num_warps && num_sources <= tile_sources;
}
int queries_at_once(int num_queries) {
  return num_queries < tile_queries ? num_queries : tile_queries;
}
unsigned blocks_for_tiles(int64_t tiles) {
  const int64_t resident = num_multiprocessors();
  return static_cast<unsigned>(tiles < resident ? tiles : resident);
}
// A tile's sums are a row for each query, against one for each source and token; at most 512 tiles keep them small.
int backward_tile_tokens(int64_t tokens) {
  constexpr int fewest = 16, most_tiles = 512;
  const auto enough = static_cast<int>((tokens + most_tiles - 1) / most_tiles);
  return enough > fewest ? enough : fewest;
}
// launch<STEPS>() for the fewest steps per warp that the row needs.
template <class Launch>
void dispatch_steps(int dim, Launch&& launch) {
  const int steps = (dim / 16 + num_warps - 1) / num_warps;
  if (steps <= 4)
    launch.template operator()<4>();
  else if (steps <= 8)
    launch.template operator()<8>();
  else if (steps <= 9)
    launch.template operator()<9>();
  else if (steps <= 12)
    launch.template operator()<12>();
  else
    launch.template operator()<16>();
}

}  // namespace

// Few enough tokens that the last tiles don't leave many blocks waiting, enough that taking one costs nothing.
constexpr int forward_tile_tokens = 8;

bool phase1_forward_fits_tensor_cores(const Phase1ForwardParams& p) {
  return fits(p.is_bf16, p.is_vector, p.dim, p.num_sources) &&
         num_stages(sizeof(ForwardShared), stage_bytes(p.num_sources, p.dim)) >= 2;
}

void launch_phase1_forward_tensor_cores(const Phase1ForwardParams& all, cudaStream_t stream) {
  Phase1ForwardParams p = all;
  const size_t stage = stage_bytes(p.num_sources, p.dim);
  const int stages = num_stages(sizeof(ForwardShared), stage);
  const unsigned blocks = blocks_for_tiles((p.tokens + forward_tile_tokens - 1) / forward_tile_tokens);
  for (int first = 0; first < all.num_queries; first += tile_queries) {
    p.num_queries = queries_at_once(all.num_queries - first);
    for (int q = 0; q < p.num_queries; ++q) p.mean[q] = all.mean[first + q];
    p.weighted = all.weighted + static_cast<int64_t>(first) * p.dim;
    p.logit = all.logit + first * p.logit_query_stride;
    p.lse = all.lse + first * p.lse_stride;
    p.work_counter = all.work_counter + first / tile_queries;
    dispatch_steps(p.dim, [&]<int STEPS>() {
      launch(phase1_forward_tensor_kernel<STEPS>, dim3(blocks), dim3(num_threads),
             sizeof(ForwardShared) + static_cast<size_t>(stages) * stage, stream, p, stages, forward_tile_tokens);
    });
  }
}

bool phase1_backward_fits_tensor_cores(const Phase1BackwardParams& p) {
  return fits(p.is_bf16, p.is_vector, p.dim, p.num_sources) && p.dh_is_bf16 &&
         num_stages(sizeof(BackwardShared), stage_bytes(p.num_sources + queries_at_once(p.num_queries), p.dim)) >= 2;
}

int phase1_backward_tiles(int64_t tokens) {
  const int64_t size = backward_tile_tokens(tokens);
  return static_cast<int>((tokens + size - 1) / size);
}

void launch_phase1_backward_tensor_cores(const Phase1BackwardParams& all, cudaStream_t stream) {
  Phase1BackwardParams p = all;
  const unsigned blocks = blocks_for_tiles(p.num_partials);
  for (int first = 0; first < all.num_queries; first += tile_queries) {
    p.num_queries = queries_at_once(all.num_queries - first);
    for (int q = 0; q < p.num_queries; ++q) {
      p.dh[q] = all.dh[first + q];
      p.lse_total[q] = all.lse_total[first + q], p.dh_dot_h[q] = all.dh_dot_h[first + q];
    }
    p.weighted = all.weighted + static_cast<int64_t>(first) * p.dim;
    p.logit = all.logit + first * p.logit_query_stride;
    p.partials = all.partials + static_cast<int64_t>(first) * p.dim;
    p.work_counter = all.work_counter + first / tile_queries;
    if (first > 0) {
      for (int j = 0; j < p.num_sources; ++j) p.accumulate[j] = true;
    }
    const size_t stage = stage_bytes(p.num_sources + p.num_queries, p.dim);
    const int stages = num_stages(sizeof(BackwardShared), stage);
    dispatch_steps(p.dim, [&]<int STEPS>() {
      launch(phase1_backward_tensor_kernel<STEPS>, dim3(blocks), dim3(num_threads),
             sizeof(BackwardShared) + static_cast<size_t>(stages) * stage, stream, p, stages,
             backward_tile_tokens(p.tokens));
    });
  }
}

}  // namespace lamina::ops::cuda
