// One more token of several sequences: the recurrence, attention over latents, and the rows' way to the sequences' memory.
#include "core/ops/decode/kernels.h"

#include "core/ops/decode/latent_parts.h"
#include "core/ops/gpu/packs.h"

namespace lamina::ops::cuda {
namespace {

template <class T>
__device__ __forceinline__ T* row_of(const StepRows& rows, int64_t sequence, int64_t head) {
  return static_cast<T*>(rows.data) + sequence * rows.sequence + head * rows.head;
}

// ---- The recurrence. With S~ = Diag(exp g) S and r = beta (v - S~^T k):
//   o = scale (S~^T q + <k, q> r),   S' = S~ + k r^T
// Limit: bytes; the state is read and written, once each up to 128 channels of the key. A block has 32 columns of one head's state, a warp
// 16 rows of every 128, whose columns are its lanes. They stay in registers from the sums to the update, so that the loads of all
// rows are issued together; a single sequence of 32 heads with 128 columns fills 128 multiprocessors.

constexpr int kda_warps = 8, kda_rows = 16, kda_block = kda_warps * kda_rows;

// Of a warp's rows: lane i has those of row i.
struct KeyRows {
  float q = 0.0f, k = 0.0f, decay = 0.0f;
};

template <class T>
__device__ __forceinline__ KeyRows load_keys(const KdaStepParams& p, int first, int lane) {
  KeyRows rows;
  const int row = first + lane;
  if (lane < kda_rows && row < p.d_k) {
    rows.q = to_float(row_of<T>(p.q, blockIdx.z, blockIdx.y)[row]);
    rows.k = to_float(row_of<T>(p.k, blockIdx.z, blockIdx.y)[row]);
    rows.decay = expf(row_of<float>(p.g, blockIdx.z, blockIdx.y)[row]);
  }
  return rows;
}

// The decayed state of the lane's column.
__device__ __forceinline__ void load_state(float (&s)[kda_rows], const KdaStepParams& p, const KeyRows& rows,
                                           const float* column, int first, bool is_inside) {
#pragma unroll
  for (int i = 0; i < kda_rows; ++i)
    s[i] = is_inside && first + i < p.d_k ? column[static_cast<int64_t>(first + i) * p.d_v] : 0.0f;
#pragma unroll
  for (int i = 0; i < kda_rows; ++i) s[i] *= __shfl_sync(full_warp, rows.decay, i);
}

template <class T>
__global__ void __launch_bounds__(kda_warps* warp_size) kda_step_kernel(const KdaStepParams p) {
  __shared__ float by_key[kda_warps][warp_size], by_query[kda_warps][warp_size], dots[kda_warps];
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const int column = static_cast<int>(blockIdx.x) * warp_size + lane;
  const bool is_inside = column < p.d_v;
  float* const state = p.states[blockIdx.z] + static_cast<int64_t>(blockIdx.y) * p.d_k * p.d_v + column;
  KeyRows rows;
  float s[kda_rows], of_key = 0.0f, of_query = 0.0f, dot = 0.0f;
  for (int first = warp * kda_rows; first < p.d_k; first += kda_block) {
    rows = load_keys<T>(p, first, lane);
    load_state(s, p, rows, state, first, is_inside);
    dot = fmaf(rows.k, rows.q, dot);
#pragma unroll
    for (int i = 0; i < kda_rows; ++i) {
      of_key = fmaf(__shfl_sync(full_warp, rows.k, i), s[i], of_key);
      of_query = fmaf(__shfl_sync(full_warp, rows.q, i), s[i], of_query);
    }
  }
  dot = warp_sum(dot);
  by_key[warp][lane] = of_key;
  by_query[warp][lane] = of_query;
  if (lane == 0) dots[warp] = dot;
  __syncthreads();
  of_key = of_query = dot = 0.0f;
#pragma unroll
  for (int other = 0; other < kda_warps; ++other) {
    of_key += by_key[other][lane];
    of_query += by_query[other][lane];
    dot += dots[other];
  }
  float written = 0.0f;
  if (is_inside) {
    const float beta = *row_of<float>(p.beta, blockIdx.z, blockIdx.y);
    written = beta * (to_float(row_of<T>(p.v, blockIdx.z, blockIdx.y)[column]) - of_key);
    if (warp == 0)
      row_of<T>(p.o, blockIdx.z, blockIdx.y)[column] = from_float<T>(p.scale * fmaf(dot, written, of_query));
  }
  for (int first = warp * kda_rows; first < p.d_k; first += kda_block) {
    if (p.d_k > kda_block) {  // the registers have the last rows only
      rows = load_keys<T>(p, first, lane);
      load_state(s, p, rows, state, first, is_inside);
    }
#pragma unroll
    for (int i = 0; i < kda_rows; ++i) {
      const float updated = fmaf(__shfl_sync(full_warp, rows.k, i), written, s[i]);
      if (is_inside && first + i < p.d_k) state[static_cast<int64_t>(first + i) * p.d_v] = updated;
    }
  }
}

// ---- Attention over latents where the tensor cores' kernel (latent_tensor_kernels.cu) does not serve. A block has some heads, one a warp,
// and a part of one sequence's context. A lane holds its elements of the query, of the latents at hand and of the sum: what was read for the
// logits is there for the sum too. The block's warps walk together, so the latents come from memory once and from the L1 cache for
// the other heads; the groups of heads share them in L2.
//
// Limit: with few heads the latents' bytes; with many fp32 arithmetic, some 2 (2 rank + d_shared) FLOP a token and head.

template <int lane_elements>
struct LatentShape {
  static constexpr int warps = lane_elements <= 18 ? 16 : 8;  // a block's registers suffice
  // Tokens whose loads are issued together, as the registers allow.
  template <class T>
  static constexpr int ahead = lane_elements <= 18 && sizeof(T) == 2 ? 4
                               : lane_elements <= 36                 ? 2
                                                                     : 1;
};

// f(k, v, element) for the lane's elements.
template <int VEC, int PACKS, class F>
__device__ __forceinline__ void each_element(F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
  for (int k = 0; k < PACKS; ++k)
#pragma unroll
    for (int v = 0; v < VEC; ++v) f(k, v, (k * warp_size + lane) * VEC + v);
}

template <class T, int VEC, int PACKS>
__global__ void __launch_bounds__(LatentShape<VEC * PACKS>::warps* warp_size)
    latent_parts_kernel(const LatentParams p) {
  constexpr int ahead = LatentShape<VEC * PACKS>::template ahead<T>;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, part = static_cast<int>(blockIdx.x);
  const int head =
      static_cast<int>(blockIdx.y) * LatentShape<VEC * PACKS>::warps + static_cast<int>(threadIdx.x) / warp_size;
  if (head >= p.heads) return;
  const LatentPart own = latent_part(p, part);
  const int sequence = own.sequence, width = p.rank + p.d_shared;
  const T* const latents = static_cast<const T*>(p.latents[sequence]);
  const float* const absorbed =
      static_cast<const float*>(p.absorbed) + (static_cast<int64_t>(sequence) * p.heads + head) * p.rank;
  constexpr float log2_e = 1.4426950408889634f;
  float q[PACKS][VEC], sum[PACKS][VEC];
  each_element<VEC, PACKS>([&](int k, int v, int e) {
    sum[k][v] = q[k][v] = 0.0f;
    if (e < p.rank)
      q[k][v] = absorbed[e];
    else if (e < width)
      q[k][v] = to_float(row_of<T>(p.q_shared, sequence, head)[e - p.rank]);
    q[k][v] *= p.scale * log2_e;
  });
  float largest = -INFINITY, weights = 0.0f;
  for (int64_t token = own.begin; token < own.end; token += ahead) {
    Pack<T, VEC> x[ahead][PACKS];
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      const T* const row = latents + min(token + a, own.end - 1) * width;
#pragma unroll
      for (int k = 0; k < PACKS; ++k) {
        const int e = (k * warp_size + lane) * VEC;
        x[a][k] = e < width ? *reinterpret_cast<const Pack<T, VEC>*>(row + e) : Pack<T, VEC>{};
      }
    }
    float logit[ahead], most = largest;
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      float dot = 0.0f;
      each_element<VEC, PACKS>([&](int k, int v, int) { dot = fmaf(q[k][v], to_float(x[a][k].at[v]), dot); });
      dot = warp_sum(dot);
      logit[a] = token + a < own.end ? dot : -INFINITY;
      most = fmaxf(most, logit[a]);
    }
    const float factor = exp2f(largest - most);
    weights *= factor;
    each_element<VEC, PACKS>([&](int k, int v, int) { sum[k][v] *= factor; });
#pragma unroll
    for (int a = 0; a < ahead; ++a) {
      const float weight = exp2f(logit[a] - most);
      weights += weight;
      each_element<VEC, PACKS>(
          [&](int k, int v, int) { sum[k][v] = fmaf(weight, to_float(x[a][k].at[v]), sum[k][v]); });
    }
    largest = most;
  }
  const int64_t at = static_cast<int64_t>(part) * p.heads + head;
  each_element<VEC, PACKS>([&](int k, int v, int e) {
    if (e < p.rank) p.sums[at * p.rank + e] = sum[k][v];
  });
  if (lane != 0) return;
  p.largest[at] = largest;
  p.weights[at] = weights;
}

constexpr int join_threads = 128;

// The parts of one sequence joined, in their order, for one head.
template <class T>
__global__ void __launch_bounds__(join_threads) join_parts_kernel(const LatentParams p) {
  const int head = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.y);
  const int first = p.first_part[sequence], last = p.first_part[sequence + 1];
  const auto at = [&](int part) { return static_cast<int64_t>(part) * p.heads + head; };
  float most = -INFINITY, total = 0.0f;
  for (int part = first; part < last; ++part) most = fmaxf(most, p.largest[at(part)]);
  for (int part = first; part < last; ++part)
    total = fmaf(exp2f(p.largest[at(part)] - most), p.weights[at(part)], total);
  T* const mean = static_cast<T*>(p.mean) + (static_cast<int64_t>(sequence) * p.heads + head) * p.rank;
  for (int e = static_cast<int>(threadIdx.x); e < p.rank; e += join_threads) {
    float sum = 0.0f;
    for (int part = first; part < last; ++part)
      sum = fmaf(exp2f(p.largest[at(part)] - most), p.sums[at(part) * p.rank + e], sum);
    mean[e] = from_float<T>(sum / total);
  }
}

template <class T, int VEC, int PACKS>
void launch_parts(const LatentParams& p, cudaStream_t stream) {
  constexpr int warps = LatentShape<VEC * PACKS>::warps;
  const dim3 grid(static_cast<unsigned>(p.first_part[p.sequences]), blocks_for(p.heads, warps));
  launch(latent_parts_kernel<T, VEC, PACKS>, grid, dim3(warps * warp_size), 0, stream, p);
}

template <class T, int VEC>
void launch_parts(const LatentParams& p, cudaStream_t stream) {
  const int packs = static_cast<int>(blocks_for(p.rank + p.d_shared, int64_t{VEC} * warp_size));
  if (packs <= 1) return launch_parts<T, VEC, 1>(p, stream);
  if (packs <= 2) return launch_parts<T, VEC, 2>(p, stream);
  if (packs <= 4) return launch_parts<T, VEC, 4>(p, stream);
  if (packs <= 9) return launch_parts<T, VEC, 9>(p, stream);
  if (packs <= 18) return launch_parts<T, VEC, 18>(p, stream);
  launch_parts<T, VEC, 36>(p, stream);
}

// ---- Copies.

constexpr int copy_threads = 128, copy_blocks_of_rows = 4096;

template <class Unit>
__global__ void __launch_bounds__(copy_threads) copy_rows_kernel(const CopyRowsParams p) {
  const CopiedRows pair = p.pairs[blockIdx.z];
  const int64_t column = static_cast<int64_t>(blockIdx.x) * copy_threads + threadIdx.x;
  if (column >= pair.columns) return;
  for (int64_t row = blockIdx.y; row < pair.rows; row += gridDim.y)
    static_cast<Unit*>(pair.to)[row * pair.to_step + column] =
        static_cast<const Unit*>(pair.from)[row * pair.from_step + column];
}

template <class Unit>
void launch_copies(const CopyRowsParams& p, cudaStream_t stream) {
  int64_t columns = 0, rows = 0;
  for (int i = 0; i < p.num_pairs; ++i) {
    columns = p.pairs[i].columns > columns ? p.pairs[i].columns : columns;
    rows = p.pairs[i].rows > rows ? p.pairs[i].rows : rows;
  }
  const dim3 grid(blocks_for(columns, copy_threads),
                  static_cast<unsigned>(rows < copy_blocks_of_rows ? rows : copy_blocks_of_rows),
                  static_cast<unsigned>(p.num_pairs));
  launch(copy_rows_kernel<Unit>, grid, dim3(copy_threads), 0, stream, p);
}

}  // namespace

void launch_kda_step(const KdaStepParams& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.d_v, warp_size), static_cast<unsigned>(p.heads), static_cast<unsigned>(p.sequences));
  launch(p.is_bf16 ? kda_step_kernel<__nv_bfloat16> : kda_step_kernel<float>, grid, dim3(kda_warps * warp_size), 0,
         stream, p);
}

void launch_latent_attention(const LatentParams& p, cudaStream_t stream) {
  visit_dtype(p.is_bf16 ? DType::bf16 : DType::f32, [&]<class T>(Type<T>) {
    if (p.on_tensor_cores)
      launch_latent_parts_tensor(p, stream);
    else
      p.in_pairs ? launch_parts<T, 2>(p, stream) : launch_parts<T, 1>(p, stream);
    const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.sequences));
    launch(join_parts_kernel<T>, grid, dim3(join_threads), 0, stream, p);
  });
}

void launch_copy_rows(const CopyRowsParams& p, cudaStream_t stream) {
  if (p.unit_bytes == 16) return launch_copies<Pack<uint32_t, 4>>(p, stream);
  if (p.unit_bytes == 4) return launch_copies<uint32_t>(p, stream);
  launch_copies<uint16_t>(p, stream);
}

}  // namespace lamina::ops::cuda
