#include "core/ops/rms_norm/kernels.h"

#include "core/ops/gpu/packs.h"

namespace lamina::ops::cuda {
namespace {

constexpr int elements = 16;        // of a row, per thread, kept in registers
constexpr int most_threads = 512;   // per row
constexpr int warps_per_block = 8;  // where a warp has a row

// A block has one row, or each of its warps has one.
struct Place {
  int threads, rows;
};
Place place_of(int64_t dim) {
  const int threads = round_up_to_warps((dim + elements - 1) / elements, most_threads);
  return {threads, threads == warp_size ? warps_per_block : 1};
}
dim3 block_of(const Place& place) {
  return {static_cast<unsigned>(place.threads), static_cast<unsigned>(place.rows), 1};
}

// A row's packs are dealt to its threads in rounds of `packs` per thread; nearly always there is one round.
template <int N>
struct Round {
  static constexpr int packs = elements / N;
  __device__ static int64_t size() { return static_cast<int64_t>(blockDim.x) * elements; }
  __device__ static int64_t at(int64_t base, int pack) {
    return base + (static_cast<int64_t>(pack) * blockDim.x + threadIdx.x) * N;
  }
};

// Over the row's threads; all the block's threads call it, also those without a row.
__device__ __forceinline__ float row_sum(float x, float* shared) {
  return blockDim.x == warp_size ? warp_sum(x) : block_sum(x, shared);
}

__device__ __forceinline__ int64_t row_of_block() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

template <class T>
__device__ __forceinline__ T* row_at(const RowMatrix& matrix, int64_t row) {
  return static_cast<T*>(matrix.data) + row * matrix.stride;
}

template <bool aligned, int N, class W>
__device__ __forceinline__ void store_normalised(float (&x)[N], const W* weight, float rstd, auto* y, int64_t left) {
  float w[N];
  load_pack<aligned>(w, weight, left);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = x[i] * rstd * w[i];
  store_pack<aligned>(y, x, left);
}

template <class T, class W, bool aligned>
__global__ void __launch_bounds__(most_threads) forward_kernel(const RmsNormForwardParams p) {
  constexpr int N = pack_of<T>;
  using Deal = Round<N>;
  __shared__ float shared[33];
  const int64_t row = row_of_block(), dim = row < p.rows ? p.dim : 0;
  const T* const weighed = row_at<T>(p.sum.data != nullptr ? p.sum : p.x, row);
  float x[Deal::packs][N], square = 0;
  for (int64_t base = 0; base < dim; base += Deal::size()) {
#pragma unroll
    for (int k = 0; k < Deal::packs; ++k) {
      const int64_t at = Deal::at(base, k);
      load_pack<aligned>(x[k], row_at<T>(p.x, row) + at, dim - at);
    }
    if (p.sum.data != nullptr) {
#pragma unroll
      for (int k = 0; k < Deal::packs; ++k) {
        const int64_t at = Deal::at(base, k);
        float delta[N];
        load_pack<aligned>(delta, row_at<T>(p.delta, row) + at, dim - at);
#pragma unroll
        for (int i = 0; i < N; ++i) x[k][i] = rounded<T>(x[k][i] + delta[i]);
        store_pack<aligned>(row_at<T>(p.sum, row) + at, x[k], dim - at);
      }
    }
#pragma unroll
    for (int k = 0; k < Deal::packs; ++k)
#pragma unroll
      for (int i = 0; i < N; ++i) square += x[k][i] * x[k][i];
  }
  const float rstd = 1.0f / sqrtf(row_sum(square, shared) / static_cast<float>(p.dim) + p.eps);
  if (row >= p.rows) return;
  if (threadIdx.x == 0) p.rstd[row] = rstd;
  const W* const weight = static_cast<const W*>(p.weight);
  T* const y = row_at<T>(p.y, row);
  for (int64_t base = 0; base < dim; base += Deal::size()) {
#pragma unroll
    for (int k = 0; k < Deal::packs; ++k) {
      const int64_t at = Deal::at(base, k);
      if (dim > Deal::size()) load_pack<aligned>(x[k], weighed + at, dim - at);
      store_normalised<aligned>(x[k], weight + at, rstd, y + at, dim - at);
    }
  }
}

template <class T, class W, bool aligned>
__global__ void __launch_bounds__(most_threads) apply_kernel(const RmsNormApplyParams p) {
  constexpr int N = pack_of<T>;
  using Deal = Round<N>;
  const int64_t row = row_of_block();
  if (row >= p.rows) return;
  const W* const weight = static_cast<const W*>(p.weight);
  const float rstd = p.rstd[row];
  for (int64_t base = 0; base < p.dim; base += Deal::size()) {
    float x[Deal::packs][N];
#pragma unroll
    for (int k = 0; k < Deal::packs; ++k) {
      const int64_t at = Deal::at(base, k);
      load_pack<aligned>(x[k], row_at<T>(p.x, row) + at, p.dim - at);
    }
#pragma unroll
    for (int k = 0; k < Deal::packs; ++k) {
      const int64_t at = Deal::at(base, k);
      store_normalised<aligned>(x[k], weight + at, rstd, row_at<T>(p.y, row) + at, p.dim - at);
    }
  }
}

// x and dy of a round; dy becomes weight dy. Returns their dot product.
template <class T, class W, bool aligned, int N, int packs>
__device__ __forceinline__ void load_round(const RmsNormBackwardParams& p, int64_t row, int64_t base,
                                           float (&x)[packs][N], float (&dy)[packs][N]) {
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int64_t at = Round<N>::at(base, k);
    load_pack<aligned>(x[k], row_at<T>(p.x, row) + at, p.dim - at);
    load_pack<aligned>(dy[k], row_at<T>(p.dy, row) + at, p.dim - at);
  }
}

template <class W, bool aligned, int N, int packs>
__device__ __forceinline__ float weigh_and_project(const RmsNormBackwardParams& p, int64_t base,
                                                   const float (&x)[packs][N], float (&dy)[packs][N]) {
  float projection = 0;
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int64_t at = Round<N>::at(base, k);
    float w[N];
    load_pack<aligned>(w, static_cast<const W*>(p.weight) + at, p.dim - at);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      dy[k][i] *= w[i];
      projection += dy[k][i] * x[k][i];
    }
  }
  return projection;
}

template <class X, bool aligned, int N, int packs>
__device__ __forceinline__ void store_dx(const RmsNormBackwardParams& p, int64_t row, int64_t base, float rstd,
                                         float projection, const float (&x)[packs][N], float (&dy)[packs][N]) {
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int64_t at = Round<N>::at(base, k);
    X* const dx = row_at<X>(p.dx, row) + at;
    float before[N] = {};
    if (p.accumulate) load_pack<aligned>(before, dx, p.dim - at);
#pragma unroll
    for (int i = 0; i < N; ++i) dy[k][i] = before[i] + rstd * (dy[k][i] - projection * x[k][i]);
    store_pack<aligned>(dx, dy[k], p.dim - at);
  }
}

template <class T, class W, class X, bool aligned>
__global__ void __launch_bounds__(most_threads) backward_kernel(const RmsNormBackwardParams p) {
  constexpr int N = pack_of<T>;
  using Deal = Round<N>;
  __shared__ float shared[33];
  const int64_t group = row_of_block(), num_groups = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const bool one_round = p.dim <= Deal::size();
  float x[Deal::packs][N], dy[Deal::packs][N], dweight[Deal::packs][N] = {};
  // The groups of a block walk in step, for its barriers.
  for (int64_t first = group - threadIdx.y; first < p.rows; first += num_groups) {
    const int64_t row = first + threadIdx.y, dim = row < p.rows ? p.dim : 0;
    const float rstd = row < p.rows ? p.rstd[row] : 0.0f;
    float projection = 0;
    for (int64_t base = 0; base < dim; base += Deal::size()) {
      load_round<T, W, aligned>(p, row, base, x, dy);
      if (one_round) {
#pragma unroll
        for (int k = 0; k < Deal::packs; ++k)
#pragma unroll
          for (int i = 0; i < N; ++i) dweight[k][i] += dy[k][i] * x[k][i] * rstd;
      }
      projection += weigh_and_project<W, aligned>(p, base, x, dy);
    }
    projection = row_sum(projection, shared) * rstd * rstd / static_cast<float>(p.dim);
    for (int64_t base = 0; base < dim; base += Deal::size()) {
      if (!one_round) {
        load_round<T, W, aligned>(p, row, base, x, dy);
        weigh_and_project<W, aligned>(p, base, x, dy);
      }
      store_dx<X, aligned>(p, row, base, rstd, projection, x, dy);
    }
  }
  if (!one_round) return;
#pragma unroll
  for (int k = 0; k < Deal::packs; ++k) {
    const int64_t at = Deal::at(0, k);
    store_pack<false>(p.partial + group * p.dim + at, dweight[k], p.dim - at);
  }
}

// dweight of rows too long for registers: a thread has a column, a block every gridDim.y-th row.
template <class T>
__global__ void __launch_bounds__(256) dweight_kernel(const RmsNormBackwardParams p) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (column >= p.dim) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y)
    sum += to_float(row_at<T>(p.dy, row)[column]) * to_float(row_at<T>(p.x, row)[column]) * p.rstd[row];
  p.partial[blockIdx.y * p.dim + column] = sum;
}

constexpr int sum_columns = 32, sum_strips = 32;

__global__ void __launch_bounds__(sum_columns* sum_strips)
    add_column_sums_kernel(const float* partial, int64_t rows, int64_t dim, float* sums) {
  __shared__ float strips[sum_strips][sum_columns];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * sum_columns + threadIdx.x;
  float sum = 0;
  if (column < dim) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < rows; row += sum_strips) sum += partial[row * dim + column];
  }
  strips[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= dim) return;
  float total = 0;
#pragma unroll
  for (int strip = 0; strip < sum_strips; ++strip) total += strips[strip][threadIdx.x];
  sums[column] += total;
}

bool is_one_round(int64_t dim) {
  return dim <= int64_t{most_threads} * elements;
}

// As many blocks as an H200 holds at once, on any device, so that sums are the same everywhere: every block leaves a partial
// sum of dweight, and those that start late would be alone at the end.
unsigned backward_blocks(int64_t rows, const Place& place) {
  constexpr int64_t multiprocessors = 132, registers = 65536, registers_per_thread = 104;
  const int64_t resident = registers / (int64_t{place.threads} * place.rows * registers_per_thread);
  const int64_t wanted = (rows + place.rows - 1) / place.rows, most = multiprocessors * (resident < 1 ? 1 : resident);
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

}  // namespace

int64_t rms_norm_partials(int64_t rows, int64_t dim) {
  const Place place = place_of(dim);
  if (is_one_round(dim)) return static_cast<int64_t>(backward_blocks(rows, place)) * place.rows;
  return rows < 64 ? rows : 64;
}

void launch_rms_norm_forward(const RmsNormForwardParams& p, cudaStream_t stream) {
  const int64_t size = size_of(p.dtype);
  const bool is_aligned =
      are_aligned({p.x.data, p.y.data, p.delta.data, p.sum.data, p.weight},
                  {p.x.stride * size, p.y.stride * size, p.delta.stride * size, p.sum.stride * size});
  const Place place = place_of(p.dim);
  visit_dtype(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      constexpr bool is = decltype(aligned)::value;
      const auto kernel = p.weight_dtype == p.dtype ? forward_kernel<T, T, is> : forward_kernel<T, float, is>;
      launch(kernel, blocks_for(p.rows, place.rows), block_of(place), 0, stream, p);
    });
  });
}

void launch_rms_norm_apply(const RmsNormApplyParams& p, cudaStream_t stream) {
  const int64_t size = size_of(p.dtype);
  const bool is_aligned = are_aligned({p.x.data, p.y.data, p.weight}, {p.x.stride * size, p.y.stride * size});
  const Place place = place_of(p.dim);
  visit_dtype(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      constexpr bool is = decltype(aligned)::value;
      const auto kernel = p.weight_dtype == p.dtype ? apply_kernel<T, T, is> : apply_kernel<T, float, is>;
      launch(kernel, blocks_for(p.rows, place.rows), block_of(place), 0, stream, p);
    });
  });
}

void launch_rms_norm_backward(const RmsNormBackwardParams& p, cudaStream_t stream) {
  const int64_t size = size_of(p.dtype);
  const bool is_aligned = are_aligned({p.x.data, p.dy.data, p.dx.data, p.weight},
                                      {p.x.stride * size, p.dy.stride * size, p.dx.stride * size_of(p.dx_dtype)});
  const Place place = place_of(p.dim);
  const unsigned blocks = is_one_round(p.dim) ? backward_blocks(p.rows, place) : blocks_for(p.rows, 1);
  visit_dtype(p.dtype, [&]<class T>(Type<T>) {
    visit_bool(is_aligned, [&](auto aligned) {
      constexpr bool is = decltype(aligned)::value;
      const bool narrow_weight = p.weight_dtype == p.dtype, narrow_dx = p.dx_dtype == p.dtype;
      const auto kernel = narrow_weight
                              ? (narrow_dx ? backward_kernel<T, T, T, is> : backward_kernel<T, T, float, is>)
                              : (narrow_dx ? backward_kernel<T, float, T, is> : backward_kernel<T, float, float, is>);
      launch(kernel, blocks, block_of(place), 0, stream, p);
    });
    if (!is_one_round(p.dim)) {
      const dim3 grid(blocks_for(p.dim, 256), static_cast<unsigned>(rms_norm_partials(p.rows, p.dim)), 1);
      launch(dweight_kernel<T>, grid, 256, 0, stream, p);
    }
  });
}

void launch_add_column_sums(const float* partial, int64_t rows, int64_t dim, float* sums, cudaStream_t stream) {
  launch(add_column_sums_kernel, blocks_for(dim, sum_columns), dim3(sum_columns, sum_strips, 1), 0, stream, partial,
         rows, dim, sums);
}

}  // namespace lamina::ops::cuda
