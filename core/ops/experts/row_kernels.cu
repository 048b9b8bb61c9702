// Sorting, gathering and combining the rows of experts. The limit of all is bytes: rows move in packs of 16 bytes, neighbouring
// lanes move neighbouring packs, and every lane has several loads under way. The sort's traffic is small (12 bytes for a pair);
// its time is that of four short kernels.
#include "core/ops/experts/row_kernels.h"

#include "core/ops/experts/warp_scan.h"

namespace lamina::ops::cuda {
namespace {

constexpr int block_size = 256;
constexpr int warps_per_block = block_size / warp_size;

// --- group_rows: a counting sort. A chunk of consecutive pairs belongs to one warp, which is a block of its own. ---

constexpr int chunk_pairs = 256;
constexpr int max_shared_counters = 8192;

// Where a warp counts: in shared memory, or, where the experts are too many for it, in its column of the table.
struct Counters {
  int32_t* at;
  int64_t stride;
  __device__ __forceinline__ int32_t& operator[](int expert) const { return at[expert * stride]; }
};

__global__ void __launch_bounds__(warp_size) count_kernel(GroupRowsParams p, bool in_shared) {
  LAMINA_DYNAMIC_SHARED(int32_t, shared);
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t num_chunks = gridDim.x;
  int32_t* const column = p.table + blockIdx.x;
  const Counters counts = in_shared ? Counters{shared, 1} : Counters{column, num_chunks};
  for (int e = lane; e < p.num_experts; e += warp_size) counts[e] = 0;
  __syncwarp();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * chunk_pairs;
  const int64_t end = min(first + chunk_pairs, p.num_pairs);
  for (int64_t n = first + lane; n < end; n += warp_size)
    if (p.chosen[n] >= 0) atomicAdd(&counts[p.chosen[n]], 1);  // of integers: the order does not matter
  if (!in_shared) return;
  __syncwarp();
  for (int e = lane; e < p.num_experts; e += warp_size) column[e * num_chunks] = counts[e];
}

// One warp per expert: its row of the table becomes the pairs in chunks before, and offsets[e] the pairs of all chunks.
__global__ void __launch_bounds__(block_size) scan_chunks_kernel(GroupRowsParams p, int64_t num_chunks) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int64_t expert = static_cast<int64_t>(blockIdx.x) * warps_per_block + warp;
  if (expert >= p.num_experts) return;
  int32_t* const row = p.table + expert * num_chunks;
  int32_t before = 0;
  for (int64_t first = 0; first < num_chunks; first += warp_size) {
    const int64_t chunk = first + lane;
    const int32_t count = chunk < num_chunks ? row[chunk] : 0;
    const int32_t sum = warp_scan(count, lane);
    if (chunk < num_chunks) row[chunk] = before + sum - count;
    before += __shfl_sync(full_warp, sum, warp_size - 1);
  }
  if (lane == 0) p.offsets[expert] = before;
}

// One warp: numbers of pairs become the offsets.
__global__ void __launch_bounds__(warp_size) scan_experts_kernel(GroupRowsParams p) {
  const int lane = static_cast<int>(threadIdx.x);
  int32_t before = 0;
  for (int first = 0; first < p.num_experts; first += warp_size) {
    const int e = first + lane;
    const int32_t count = e < p.num_experts ? p.offsets[e] : 0;
    const int32_t sum = warp_scan(count, lane);
    if (e < p.num_experts) p.offsets[e] = before + sum - count;
    before += __shfl_sync(full_warp, sum, warp_size - 1);
  }
  if (lane == 0) p.offsets[p.num_experts] = before;
}

// The lanes whose `expert` is this lane's; `bits` tell the experts apart.
__device__ __forceinline__ unsigned lanes_with(int expert, int bits) {
  unsigned same = full_warp;
  for (int bit = 0; bit < bits; ++bit) {
    const bool set = ((expert >> bit) & 1) != 0;
    const unsigned with = __ballot_sync(full_warp, set);
    same &= set ? with : ~with;
  }
  return same;
}

__global__ void __launch_bounds__(warp_size) scatter_kernel(GroupRowsParams p, bool in_shared, int bits) {
  LAMINA_DYNAMIC_SHARED(int32_t, shared);
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t num_chunks = gridDim.x;
  int32_t* const column = p.table + blockIdx.x;
  const Counters next = in_shared ? Counters{shared, 1} : Counters{column, num_chunks};
  for (int e = lane; e < p.num_experts; e += warp_size) next[e] = column[e * num_chunks] + p.offsets[e];
  __syncwarp();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * chunk_pairs;
  const int64_t end = min(first + chunk_pairs, p.num_pairs);
  for (int64_t begin = first; begin < end; begin += warp_size) {
    const int64_t n = begin + lane;
    const int expert = n < end ? p.chosen[n] : -1;
    const unsigned same = lanes_with(expert + 1, bits);
    const unsigned before = same & ((1u << lane) - 1);
    const int32_t pair = expert >= 0 ? next[expert] + __popc(before) : -1;
    __syncwarp();  // all have read before the first of each expert moves on
    if (expert >= 0 && before == 0) next[expert] += __popc(same);
    if (expert >= 0) {
      p.row_of[pair] = static_cast<int32_t>(n / p.k);
      p.pair_weight[pair] = p.weights[n];
    }
    if (n < end) p.position[n] = pair;
    __syncwarp();
  }
}

// --- Rows. A row's packs are moved by `lanes` neighbouring threads, a power of two up to a warp. ---

struct RowLanes {
  int64_t row;
  int64_t first;  // pack
};
__device__ __forceinline__ RowLanes row_of_thread(int lanes) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * block_size + threadIdx.x;
  return {thread / lanes, static_cast<int64_t>(threadIdx.x) & (lanes - 1)};
}

template <class T>
__global__ void __launch_bounds__(block_size) gather_kernel(GatherRowsParams p, int lanes) {
  const auto [row, first] = row_of_thread(lanes);
  if (row >= p.num_rows) return;
  const T* const from = static_cast<const T*>(p.x) + p.index[row] * p.x_stride;
  T* const to = static_cast<T*>(p.y) + row * p.y_stride;
  int64_t c = first;
  for (; c + 3 * lanes < p.num_columns; c += 4 * lanes) {
    const T a = from[c], b = from[c + lanes], d = from[c + 2 * lanes], e = from[c + 3 * lanes];
    to[c] = a;
    to[c + lanes] = b;
    to[c + 2 * lanes] = d;
    to[c + 3 * lanes] = e;
  }
  for (; c < p.num_columns; c += lanes) to[c] = from[c];
}

// Four rows are asked for before the first is added, in the order of the slots.
template <class X, class Y, int N>
__global__ void __launch_bounds__(block_size) combine_kernel(CombineRowsParams p, int lanes) {
  constexpr int at_once = 4;
  const auto [token, first] = row_of_thread(lanes);
  if (token >= p.num_tokens) return;
  const int32_t* const position = p.position + token * p.k;
  for (int64_t column = first * N; column < p.num_columns; column += static_cast<int64_t>(lanes) * N) {
    const X* const x = static_cast<const X*>(p.x) + column;
    float sum[N] = {};
    for (int64_t j = 0; j < p.k; j += at_once) {
      Pack<X, N> packs[at_once];
      int32_t rows[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) rows[i] = j + i < p.k ? position[j + i] : -1;
#pragma unroll
      for (int i = 0; i < at_once; ++i)
        if (rows[i] >= 0) packs[i] = *reinterpret_cast<const Pack<X, N>*>(x + rows[i] * p.x_stride);
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        if (rows[i] < 0) continue;
#pragma unroll
        for (int n = 0; n < N; ++n) sum[n] += to_float(packs[i].at[n]);
      }
    }
    auto* const y = reinterpret_cast<Pack<Y, N>*>(static_cast<Y*>(p.y) + token * p.y_stride + column);
    Pack<Y, N> out{};
    if (p.accumulate) out = *y;
#pragma unroll
    for (int n = 0; n < N; ++n) out.at[n] = from_float<Y>(p.accumulate ? to_float(out.at[n]) + sum[n] : sum[n]);
    *y = out;
  }
}

int lanes_for(int64_t num_packs) {
  int lanes = 1;
  while (lanes < warp_size && lanes < num_packs) lanes *= 2;
  return lanes;
}

bool fits_packs(const void* address, int64_t stride, int64_t width, int64_t element_bytes) {
  return reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(width * element_bytes) == 0 &&
         stride % width == 0;
}

template <class X, class Y, int N>
void launch_combine(const CombineRowsParams& p, cudaStream_t stream) {
  constexpr auto x_bytes = static_cast<int64_t>(sizeof(X)), y_bytes = static_cast<int64_t>(sizeof(Y));
  const bool packs =
      p.num_columns % N == 0 && fits_packs(p.x, p.x_stride, N, x_bytes) && fits_packs(p.y, p.y_stride, N, y_bytes);
  const int lanes = lanes_for(packs ? p.num_columns / N : p.num_columns);
  const dim3 grid(blocks_for(p.num_tokens * lanes, block_size));
  if (packs)
    launch(combine_kernel<X, Y, N>, grid, dim3(block_size), 0, stream, p, lanes);
  else
    launch(combine_kernel<X, Y, 1>, grid, dim3(block_size), 0, stream, p, lanes);
}

}  // namespace

int64_t group_rows_chunks(int64_t num_pairs) {
  return (num_pairs + chunk_pairs - 1) / chunk_pairs;
}

void launch_group_rows(const GroupRowsParams& p, cudaStream_t stream) {
  const int64_t num_chunks = group_rows_chunks(p.num_pairs);
  const bool in_shared = p.num_experts <= max_shared_counters;
  const size_t shared = in_shared ? static_cast<size_t>(p.num_experts) * sizeof(int32_t) : 0;
  int bits = 1;
  while (p.num_experts >> bits != 0) ++bits;  // of experts + 1: 0 stands for none
  const dim3 chunks(static_cast<unsigned>(num_chunks)), warp(warp_size);
  launch(count_kernel, chunks, warp, shared, stream, p, in_shared);
  launch(scan_chunks_kernel, dim3(blocks_for(p.num_experts, warps_per_block)), dim3(block_size), 0, stream, p,
         num_chunks);
  launch(scan_experts_kernel, dim3(1), warp, 0, stream, p);
  launch(scatter_kernel, chunks, warp, shared, stream, p, in_shared, bits);
}

void launch_gather_rows(const GatherRowsParams& p, cudaStream_t stream) {
  GatherRowsParams q = p;
  const int width = pack_width(p.element_bytes, {p.x, p.y}, {p.x_stride, p.y_stride, p.num_columns});
  q.num_columns /= width;
  q.x_stride /= width;
  q.y_stride /= width;
  const int lanes = lanes_for(q.num_columns);
  const dim3 grid(blocks_for(p.num_rows * lanes, block_size));
  if (width > 1)
    launch(gather_kernel<Pack<uint32_t, 4>>, grid, dim3(block_size), 0, stream, q, lanes);
  else if (p.element_bytes == 4)
    launch(gather_kernel<uint32_t>, grid, dim3(block_size), 0, stream, q, lanes);
  else
    launch(gather_kernel<uint16_t>, grid, dim3(block_size), 0, stream, q, lanes);
}

void launch_combine_rows(const CombineRowsParams& p, cudaStream_t stream) {
  if (p.x_low && p.y_low)
    launch_combine<__nv_bfloat16, __nv_bfloat16, 8>(p, stream);
  else if (p.x_low)
    launch_combine<__nv_bfloat16, float, 8>(p, stream);
  else if (p.y_low)
    launch_combine<float, __nv_bfloat16, 8>(p, stream);
  else
    launch_combine<float, float, 4>(p, stream);
}

}  // namespace lamina::ops::cuda
