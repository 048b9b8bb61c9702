// The experts' products in bf16: y = x w^T, dx = dy w, dw += dy^T x, all experts in one launch. The limit is the tensor cores'
// mma.sync rate for many rows per expert, and for few the bytes of the matrices (dw: read and written in fp32).
//
// A block of 4 warps makes a tile of 128 x 128 of one expert's result, a warp 64 x 64 of it: so a warp reads 4 KB of shared memory
// for 32 mma, half of what the tensor cores' rate leaves time for. Slices of 32 of the summed extent come through 4 buffers by
// cp.async; two blocks fit on a multiprocessor, so that one computes while the other starts or ends. Shared rows are swizzled: the
// 8 addresses of an 8x8 matrix of ldmatrix, and of 8 neighbouring copies, fall into different banks. Tiles are numbered expert by
// expert, and within one in bands of 16 tiles of rows, so that blocks that run at the same time share operands in the L2 cache.
// The host launches as many blocks as there can be tiles, however the rows are spread; those that find none left end.
// The order of every sum depends on the sizes of the matrices only.
#include "core/ops/experts/grouped_linear_kernels.h"

#include "core/ops/experts/warp_scan.h"

namespace lamina::ops::cuda {
namespace {

using bfloat = __nv_bfloat16;
using Kind = GroupedProductParams::Kind;

constexpr int tile = 128, depth = 32, num_stages = 4, block_size = 128, warp_tile = 64;
constexpr int chunk = 8;  // elements of 16 bytes
constexpr int operand_elements = tile * depth, stage_elements = 2 * operand_elements;
constexpr size_t shared_bytes = sizeof(bfloat) * stage_elements * num_stages;
constexpr int copies = operand_elements / chunk / block_size;  // of a thread for one operand of a slice
constexpr int band = 16;
constexpr int staged_row = warp_tile + chunk;  // of results on their way out; the padding keeps rows in different banks
static_assert(sizeof(bfloat) * 4 * warp_tile * staged_row <= shared_bytes);

// Where a chunk of a slice lies in shared memory. Summed-first: `line` is one of 128 rows or columns of the result, a chunk is 8
// steps of the sum. Otherwise `line` is one of 32 steps, a chunk 8 rows or columns.
template <bool summed_first>
__device__ __forceinline__ int place_of(int line, int index) {
  return (summed_first ? line * 4 + (index ^ ((line >> 1) & 3)) : line * 16 + (index ^ (line & 7))) * chunk;
}

// An operand of one tile: element (line, i), i neighbouring in memory, is at[line * stride + i].
struct Operand {
  const bfloat* at;  // of the tile's first line or column
  int64_t stride;
  int extent;  // rows or columns of the result that there are, at most 128 of which are the tile's
};

// One chunk by single elements: what cp.async can't copy.
__device__ __forceinline__ void copy_elements(bfloat* to, const bfloat* from, int count) {
  Pack<bfloat, chunk> pack;
#pragma unroll
  for (int i = 0; i < chunk; ++i) pack.at[i] = i < count ? from[i] : from_float<bfloat>(0.0f);
  *reinterpret_cast<Pack<bfloat, chunk>*>(to) = pack;
}

// Slice [step, step + 32) of the sum into shared memory; what lies outside becomes zero.
template <bool summed_first, bool packed>
__device__ __forceinline__ void copy_slice(bfloat* shared, const Operand& x, int step, int num_steps) {
  constexpr int chunks_per_line = summed_first ? depth / chunk : tile / chunk;
  constexpr int lines_apart = block_size / chunks_per_line;
  const int first_line = static_cast<int>(threadIdx.x) / chunks_per_line;
  const int index = static_cast<int>(threadIdx.x) % chunks_per_line;
#pragma unroll
  for (int i = 0; i < copies; ++i) {
    const int line = first_line + i * lines_apart;
    const int along = index * chunk;
    const bool inside = summed_first ? line < x.extent : step + line < num_steps;
    const int left = (summed_first ? num_steps - step : x.extent) - along;
    const int count = inside ? max(0, min(left, chunk)) : 0;
    const int64_t offset = summed_first ? line * x.stride + step + along : (step + line) * x.stride + along;
    const bfloat* const from = count > 0 ? x.at + offset : x.at;
    bfloat* const to = shared + place_of<summed_first>(line, index);
    if constexpr (packed)
      lamina::cuda::cp_async_16(to, from, count * static_cast<int>(sizeof(bfloat)));
    else
      copy_elements(to, from, count);
  }
}

// Fragment of a: 16 rows from `row` on, 16 steps from `step` on.
template <bool summed_first>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const bfloat* shared, int row, int step, int lane) {
  const int in_matrix = lane % 8, lower = (lane / 8) % 2, upper = lane / 16;
  if constexpr (summed_first)
    lamina::cuda::ldmatrix_x4(a, shared + place_of<true>(row + in_matrix + lower * 8, step / chunk + upper));
  else
    lamina::cuda::ldmatrix_x4_trans(a, shared + place_of<false>(step + in_matrix + upper * 8, row / chunk + lower));
}

// Fragments of b for 16 columns from `column` on: [0], [1] of the first 8, [2], [3] of the others.
template <bool summed_first>
__device__ __forceinline__ void load_b(uint32_t (&b)[4], const bfloat* shared, int column, int step, int lane) {
  const int in_matrix = lane % 8, lower = (lane / 8) % 2, upper = lane / 16;
  if constexpr (summed_first)
    lamina::cuda::ldmatrix_x4(b, shared + place_of<true>(column + in_matrix + upper * 8, step / chunk + lower));
  else
    lamina::cuda::ldmatrix_x4_trans(b, shared + place_of<false>(step + in_matrix + lower * 8, column / chunk + upper));
}

constexpr int row_fragments = warp_tile / 16, column_fragments = warp_tile / 8;
using Sums = float[row_fragments][column_fragments][4];

template <bool a_summed_first, bool b_summed_first>
__device__ __forceinline__ void multiply_slice(Sums& sums, const bfloat* a_shared, const bfloat* b_shared, int row,
                                               int column, int lane) {
#pragma unroll
  for (int step = 0; step < depth; step += 16) {
    uint32_t a[row_fragments][4];
#pragma unroll
    for (int m = 0; m < row_fragments; ++m) load_a<a_summed_first>(a[m], a_shared, row + m * 16, step, lane);
#pragma unroll
    for (int n = 0; n < column_fragments; n += 2) {
      uint32_t b[4];
      load_b<b_summed_first>(b, b_shared, column + n * 8, step, lane);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < row_fragments; ++m) {
        lamina::cuda::mma_bf16(sums[m][n], a[m], left);
        lamina::cuda::mma_bf16(sums[m][n + 1], a[m], right);
      }
    }
  }
}

template <bool a_summed_first, bool b_summed_first, bool packed>
__device__ __forceinline__ void multiply(Sums& sums, bfloat* shared, const Operand& a, const Operand& b, int num_steps,
                                         int row, int column, int lane) {
  const int num_slices = (num_steps + depth - 1) / depth;
  const auto copy = [&](int slice) {
    if (slice < num_slices) {
      bfloat* const stage = shared + slice % num_stages * stage_elements;
      copy_slice<a_summed_first, packed>(stage, a, slice * depth, num_steps);
      copy_slice<b_summed_first, packed>(stage + operand_elements, b, slice * depth, num_steps);
    }
    lamina::cuda::cp_async_commit();  // an empty group too: the waits below count groups
  };
#pragma unroll
  for (int slice = 0; slice < num_stages - 1; ++slice) copy(slice);
  for (int slice = 0; slice < num_slices; ++slice) {
    lamina::cuda::cp_async_wait<num_stages - 2>();
    __syncthreads();  // everybody's part of the slice is here, and the slice before has been read
    copy(slice + num_stages - 1);
    const bfloat* const stage = shared + slice % num_stages * stage_elements;
    multiply_slice<a_summed_first, b_summed_first>(sums, stage, stage + operand_elements, row, column, lane);
  }
  lamina::cuda::cp_async_wait<0>();
}

// A warp's part of the result: element (0, 0), and how many rows and columns of it there are.
template <class T>
struct Result {
  T* at;
  int64_t stride;
  int rows, columns;
  bool packed;
};

// Through shared memory, so that a row leaves in whole lines of 128 bytes.
__device__ __forceinline__ void store(const Sums& sums, const Result<bfloat>& to, bfloat* staged, int lane) {
#pragma unroll
  for (int m = 0; m < row_fragments; ++m) {
#pragma unroll
    for (int n = 0; n < column_fragments; ++n) {
      bfloat* const at = staged + (m * 16 + lane / 4) * staged_row + n * 8 + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(at) = pack_bf16(sums[m][n][0], sums[m][n][1]);
      *reinterpret_cast<uint32_t*>(at + 8 * staged_row) = pack_bf16(sums[m][n][2], sums[m][n][3]);
    }
  }
  __syncwarp();
  constexpr int chunks_per_row = warp_tile / chunk, rows_at_once = warp_size / chunks_per_row;
  const int column = lane % chunks_per_row * chunk;
#pragma unroll 4
  for (int row = lane / chunks_per_row; row < warp_tile; row += rows_at_once) {
    if (row >= to.rows) break;
    const auto pack = *reinterpret_cast<const Pack<bfloat, chunk>*>(staged + row * staged_row + column);
    bfloat* const at = to.at + row * to.stride + column;
    if (to.packed && column + chunk <= to.columns) {
      *reinterpret_cast<Pack<bfloat, chunk>*>(at) = pack;
    } else {
#pragma unroll
      for (int i = 0; i < chunk; ++i)
        if (column + i < to.columns) at[i] = pack.at[i];
    }
  }
}

// Four lanes hold 8 neighbouring columns: 32 bytes, a whole sector.
template <bool accumulate>
__device__ __forceinline__ void store(const Sums& sums, const Result<float>& to, int lane) {
#pragma unroll
  for (int m = 0; m < row_fragments; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m * 16 + half * 8 + lane / 4;
      if (row >= to.rows) continue;
      float* const line = to.at + row * to.stride;
#pragma unroll
      for (int n = 0; n < column_fragments; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        float2 sum = make_float2(sums[m][n][half * 2], sums[m][n][half * 2 + 1]);
        if (to.packed && column + 2 <= to.columns) {
          auto* const at = reinterpret_cast<float2*>(line + column);
          if constexpr (accumulate) {
            const float2 before = *at;
            sum = make_float2(before.x + sum.x, before.y + sum.y);
          }
          *at = sum;
        } else {
          if (column < to.columns) line[column] = accumulate ? line[column] + sum.x : sum.x;
          if (column + 1 < to.columns) line[column + 1] = accumulate ? line[column + 1] + sum.y : sum.y;
        }
      }
    }
  }
}

__host__ __device__ __forceinline__ int tiles_of(int64_t extent) {
  return static_cast<int>((extent + tile - 1) / tile);
}

// Which tile of which expert a block makes. expert < 0: none.
struct Place {
  int expert, row, column;  // of the tile's first element
};

// Of `index`, counted within an expert's matrix of `down` x `across` tiles.
__device__ __forceinline__ Place place_in_matrix(int expert, int index, int down, int across) {
  const int band_first = index / (band * across) * band, within = index % (band * across);
  const int height = min(band, down - band_first);
  return {expert, (band_first + within % height) * tile, within / height * tile};
}

// All of dw is made of every expert that has rows.
__device__ __forceinline__ Place place_in_weights(const GroupedProductParams& p) {
  const int down = tiles_of(p.out), across = tiles_of(p.in), block = static_cast<int>(blockIdx.x);
  const int expert = block / (down * across);
  if (p.begin[expert] == p.begin[expert + 1]) return {-1, 0, 0};
  return place_in_matrix(expert, block % (down * across), down, across);
}

// As many rows of tiles as each expert's rows fill: a thread counts those of its experts, and the one that has the block's tells all.
__device__ __forceinline__ Place place_in_rows(const GroupedProductParams& p, int across) {
  constexpr int own = grouped_experts / block_size, num_warps = block_size / warp_size;
  static_assert(own * block_size == grouped_experts);
  __shared__ int warp_totals[num_warps];
  __shared__ Place found;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % warp_size, warp = thread / warp_size;
  int down[own], total = 0;
#pragma unroll
  for (int i = 0; i < own; ++i) {
    const int expert = thread * own + i;
    down[i] = expert < p.num_experts ? tiles_of(p.begin[expert + 1] - p.begin[expert]) : 0;
    total += down[i];
  }
  const int until = warp_scan(total, lane);
  if (lane == warp_size - 1) warp_totals[warp] = until;
  if (thread == 0) found.expert = -1;
  __syncthreads();
  int first = until - total;  // row of tiles
#pragma unroll
  for (int w = 0; w < num_warps; ++w)
    if (w < warp) first += warp_totals[w];
  const auto block = static_cast<int>(blockIdx.x);
#pragma unroll
  for (int i = 0; i < own; ++i) {
    const int index = block - first * across;
    if (index >= 0 && index < down[i] * across) found = place_in_matrix(thread * own + i, index, down[i], across);
    first += down[i];
  }
  __syncthreads();
  return found;
}

template <Kind kind, bool packed, class Out>
__global__ void __launch_bounds__(block_size, 2) product_kernel(const __grid_constant__ GroupedProductParams p) {
  LAMINA_DYNAMIC_SHARED(bfloat, shared);
  constexpr bool is_weight = kind == Kind::weight_gradient;
  const int64_t num_columns = kind == Kind::forward ? p.out : p.in;
  const Place place = is_weight ? place_in_weights(p) : place_in_rows(p, tiles_of(num_columns));
  if (place.expert < 0) return;
  const int begin = p.begin[place.expert], count = p.begin[place.expert + 1] - begin;
  const int num_rows = is_weight ? static_cast<int>(p.out) : count;
  const auto* const rows = static_cast<const bfloat*>(p.rows) + begin * p.rows_stride;
  void* const matrix = p.matrices[place.expert];
  const int rows_left = num_rows - place.row, columns_left = static_cast<int>(num_columns) - place.column;

  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int row = warp / 2 * warp_tile, column = warp % 2 * warp_tile;
  Sums sums = {};
  if constexpr (is_weight) {
    const auto* const inputs = static_cast<const bfloat*>(p.inputs) + begin * p.inputs_stride;
    multiply<false, false, packed>(sums, shared, {rows + place.row, p.rows_stride, rows_left},
                                   {inputs + place.column, p.inputs_stride, columns_left}, count, row, column, lane);
  } else {
    const auto* const w = static_cast<const bfloat*>(matrix);
    const Operand a{rows + place.row * p.rows_stride, p.rows_stride, rows_left};
    if constexpr (kind == Kind::forward)
      multiply<true, true, packed>(sums, shared, a, {w + place.column * p.in, p.in, columns_left},
                                   static_cast<int>(p.in), row, column, lane);
    else
      multiply<true, false, packed>(sums, shared, a, {w + place.column, p.in, columns_left}, static_cast<int>(p.out),
                                    row, column, lane);
  }

  const int64_t stride = is_weight ? p.in : p.result_stride;
  Out* const result = is_weight ? static_cast<Out*>(matrix) : static_cast<Out*>(p.result) + begin * stride;
  const Result<Out> to{result + (place.row + row) * stride + place.column + column, stride, rows_left - row,
                       columns_left - column, p.out_packed};
  if constexpr (sizeof(Out) == sizeof(bfloat)) {
    __syncthreads();  // the last slice has been read: its memory holds results now
    store(sums, to, shared + warp * warp_tile * staged_row, lane);
  } else {
    store<is_weight>(sums, to, lane);
  }
}

__global__ void __launch_bounds__(grouped_experts) addresses_kernel(const __grid_constant__ AddressTableParams p) {
  const auto i = static_cast<int>(threadIdx.x);
  if (i >= p.count) return;
  p.matrices[i] = const_cast<void*>(p.matrix[i]);
  p.rows[i] = p.first_row + p.row[i] * p.row_bytes;
  p.results[i] = p.first_result + p.row[i] * p.result_bytes;
}

template <Kind kind, class Out>
void launch_kind(const GroupedProductParams& p, cudaStream_t stream) {
  const int across = tiles_of(kind == Kind::forward ? p.out : p.in);
  int64_t down = int64_t{p.num_experts} * tiles_of(p.out);
  if (kind != Kind::weight_gradient) {
    const int64_t with_rows = p.num_rows < p.num_experts ? p.num_rows : p.num_experts;  // each may waste most of a tile
    down = (p.num_rows + with_rows * (tile - 1)) / tile;
  }
  const dim3 grid(static_cast<unsigned>(down * across)), block(block_size);
  if (p.packed)
    launch(product_kernel<kind, true, Out>, grid, block, shared_bytes, stream, p);
  else
    launch(product_kernel<kind, false, Out>, grid, block, shared_bytes, stream, p);
}

}  // namespace

void launch_grouped_product(const GroupedProductParams& p, cudaStream_t stream) {
  if (p.kind == Kind::weight_gradient)
    launch_kind<Kind::weight_gradient, float>(p, stream);
  else if (p.kind == Kind::forward && p.out_low)
    launch_kind<Kind::forward, bfloat>(p, stream);
  else if (p.kind == Kind::forward)
    launch_kind<Kind::forward, float>(p, stream);
  else if (p.out_low)
    launch_kind<Kind::input_gradient, bfloat>(p, stream);
  else
    launch_kind<Kind::input_gradient, float>(p, stream);
}

void launch_write_addresses(const AddressTableParams& p, cudaStream_t stream) {
  launch(addresses_kernel, dim3(1), dim3(grouped_experts), 0, stream, p);
}

}  // namespace lamina::ops::cuda
