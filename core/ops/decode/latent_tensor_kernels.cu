// Attention over latents on tensor cores, for bf16: a block has up to 32 heads of one sequence and a part of its context, over which it
// walks in tiles of 32 latents. A tile is read once, for all heads, and serves as keys and as values.
//
// Limit: bytes; 32 heads make 70 KFLOP of a latent's 1,152 bytes. The next tile travels while this one is multiplied. Of a tile the
// 32 x 32 logits are shared out by heads, latents and halves of the width; the softmax by heads; the sums by columns, which stay in
// registers to the end. Three barriers a tile; a place in the ring is filled again behind the one after its last reader.
#include "core/ops/attention/kernel_tile.h"
#include "core/ops/decode/latent_parts.h"

namespace lamina::ops::cuda {
namespace {

constexpr int num_warps = 8, num_threads = num_warps * warp_size;
constexpr int heads = latent_tensor_heads, keys = 32, head_groups = heads / 16;
constexpr int rows_per_warp = heads / num_warps;  // of the softmax

template <int width>
struct Shared {
  Bf16 queries[tile_size(heads, width)], latents[2][tile_size(keys, width)], weights[tile_size(heads, keys)];
  float logits[2][heads][keys + 4];  // of each half of the width
  float rescale[heads];
};

// The queries against c and those against k_shared, side by side; zeros beyond the width and the heads.
template <int width>
__device__ __forceinline__ void load_queries(Bf16* tile, const LatentParams& p, int sequence, int first_head) {
  for (int n = static_cast<int>(threadIdx.x); n < heads * (width / 8); n += num_threads) {
    const int row = n / (width / 8), column = n % (width / 8) * 8, head = first_head + row;
    Chunk chunk = {};
    if (head < p.heads && column < p.rank)
      chunk = *reinterpret_cast<const Chunk*>(static_cast<const Bf16*>(p.absorbed) +
                                              (static_cast<int64_t>(sequence) * p.heads + head) * p.rank + column);
    else if (head < p.heads && column < p.rank + p.d_shared)
      chunk =
          *reinterpret_cast<const Chunk*>(static_cast<const Bf16*>(p.q_shared.data) + sequence * p.q_shared.sequence +
                                          head * p.q_shared.head + column - p.rank);
    *reinterpret_cast<Chunk*>(tile + row * pitch(width) + column) = chunk;
  }
}

// A warp's 16 heads by 16 latents, over its half of the width.
template <int width>
__device__ __forceinline__ void multiply_logits(Shared<width>& shared, const Bf16* latents) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  const int half = warp / 4, row0 = warp / 2 % 2 * 16, key0 = warp % 2 * 16;
  const Fragments<width> q(shared.queries, row0, half * (width / 2), Second::down),
      k(latents, key0, half * (width / 2), Second::right);
  float s[1][2][4];
  clear(s);
  multiply_add<width / 32>(
      s, [&](uint32_t(&a)[4], int, int step) { q.load(a, 0, 16 * step); },
      [&](uint32_t(&b)[4], int, int step) { k.load(b, 0, 16 * step); });
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      shared.logits[half][row0 + lane / 4 + e / 2 * 8][key0 + 8 * n + 2 * (lane % 4) + e % 2] = s[0][n][e];
}

// What a warp knows of its rows.
struct Softmax {
  float largest[rows_per_warp], weights[rows_per_warp];
};

// num_keys: of the tile. A lane has one of them.
template <int width>
__device__ __forceinline__ void weigh(Shared<width>& shared, Softmax& state, float factor, int num_keys) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) {
    const int row = warp * rows_per_warp + r;
    const float logit =
        lane < num_keys ? factor * (shared.logits[0][row][lane] + shared.logits[1][row][lane]) : -INFINITY;
    const float most = fmaxf(state.largest[r], warp_max(logit));
    const float weight = exp2f(logit - most), rescale = exp2f(state.largest[r] - most);
    state.weights[r] = fmaf(state.weights[r], rescale, warp_sum(weight));
    state.largest[r] = most;
    shared.weights[row * pitch(keys) + lane] = from_float<Bf16>(weight);
    if (lane == 0) shared.rescale[row] = rescale;
  }
}

// sums: of the warp's columns of the latents, for all heads.
template <int width, int columns8>
__device__ __forceinline__ void add_values(float (&sums)[head_groups][columns8][4], const Shared<width>& shared,
                                           const Bf16* latents) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
  for (int g = 0; g < head_groups; ++g) {
    const float upper = shared.rescale[16 * g + lane / 4], lower = shared.rescale[16 * g + 8 + lane / 4];
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[g][n][e] *= e < 2 ? upper : lower;
  }
  const Fragments<keys> weights(shared.weights, 0, 0, Second::down);
  const Fragments<width> values(latents, 0, warp * 8 * columns8, Second::down);
  multiply_add<keys / 16>(
      sums, [&](uint32_t(&a)[4], int g, int step) { weights.load(a, 16 * g, 16 * step); },
      [&](uint32_t(&b)[4], int n, int step) { values.load_trans(b, 16 * step, 16 * n); });
}

// width, rank: padded.
template <int width, int rank>
__global__ void __launch_bounds__(num_threads) latent_tensor_kernel(const LatentParams p) {
  constexpr int columns8 = rank / num_warps / 8;
  LAMINA_DYNAMIC_SHARED(Shared<width>, shared);
  const int warp = static_cast<int>(threadIdx.x) / warp_size, lane = static_cast<int>(threadIdx.x) % warp_size;
  const int part = static_cast<int>(blockIdx.x), first_head = static_cast<int>(blockIdx.y) * heads;
  const LatentPart own = latent_part(p, part);
  const int sequence = own.sequence, begin = static_cast<int>(own.begin), end = static_cast<int>(own.end);
  const int latent_width = p.rank + p.d_shared;
  const HeadRows latents = {static_cast<Bf16*>(const_cast<void*>(p.latents[sequence])), latent_width, end,
                            latent_width};
  constexpr float log2_e = 1.4426950408889634f;
  load_tile<width, keys, num_threads>(shared->latents[0], latents, begin);
  cp_async_commit();
  load_queries<width>(shared->queries, p, sequence, first_head);
  float sums[head_groups][columns8][4];
  clear(sums);
  Softmax state;
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) state.largest[r] = -INFINITY, state.weights[r] = 0.0f;
  for (int key = begin, place = 0; key < end; key += keys, place ^= 1) {
    cp_async_wait<0>();
    __syncthreads();  // this tile is here, and the one before is used
    if (key + keys < end) load_tile<width, keys, num_threads>(shared->latents[place ^ 1], latents, key + keys);
    cp_async_commit();
    multiply_logits<width>(*shared, shared->latents[place]);
    __syncthreads();
    weigh<width>(*shared, state, p.scale * log2_e, end - key);
    __syncthreads();
    add_values<width>(sums, *shared, shared->latents[place]);
  }
  const auto at = [&](int row) { return static_cast<int64_t>(part) * p.heads + first_head + row; };
#pragma unroll
  for (int g = 0; g < head_groups; ++g)
#pragma unroll
    for (int n = 0; n < columns8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = 16 * g + lane / 4 + e / 2 * 8, column = 8 * (warp * columns8 + n) + 2 * (lane % 4) + e % 2;
        if (first_head + row < p.heads && column < p.rank) p.sums[at(row) * p.rank + column] = sums[g][n][e];
      }
#pragma unroll
  for (int r = 0; r < rows_per_warp; ++r) {
    const int row = warp * rows_per_warp + r;
    if (lane != 0 || first_head + row >= p.heads) continue;
    p.largest[at(row)] = state.largest[r];
    p.weights[at(row)] = state.weights[r];
  }
}

template <int width, int rank>
void run(const LatentParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.first_part[p.sequences]), blocks_for(p.heads, heads));
  launch(latent_tensor_kernel<width, rank>, grid, dim3(num_threads), sizeof(Shared<width>), stream, p);
}

}  // namespace

void launch_latent_parts_tensor(const LatentParams& p, cudaStream_t stream) {
  const int width = p.rank + p.d_shared;
  if (width <= 128) return run<128, 128>(p, stream);
  if (width <= 320 && p.rank <= 256) return run<320, 256>(p, stream);
  run<latent_widest_tensor, latent_highest_tensor>(p, stream);
}

}  // namespace lamina::ops::cuda
