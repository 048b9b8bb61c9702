// The sequential part of Kimi Delta Attention: a block carries 32 columns of a pair's state, or of its gradient, from chunk to chunk
// in registers (fp32), with a rounded copy in shared memory as an operand.
//
// Per chunk and pair, forward: MACs 3 C K V + C^2 V, bytes 6 C K + 4 C^2 from L2 for each of V / 32 blocks, 4 C V from and to memory.
// Blocks wait for their own chain of four dependent products and three barriers, not for memory or tensor cores: the next
// chunk's operands are copied meanwhile. There are V / 32 blocks per pair, so 32 pairs fill 128 multiprocessors.
#include "core/ops/kda/kernel_tiles.h"

namespace lamina::ops::cuda {
namespace kda {

constexpr int columns = 32;  // of the state, per block
constexpr int max_state_tiles = kda_max_width / sub_block / num_warps;

template <class E>
struct Stage {  // copies of a chunk's operands; only in the fast version
  static constexpr int wide = 128 + skew<E>, square = chunk + skew<E>, narrow = columns + skew<E>;
  static constexpr size_t bytes = sizeof(E) * chunk * (3 * wide + 2 * square + narrow);
  E *q_decayed, *k_decayed, *k_to_end, *m, *aqk, *values;  // values: v or dO
  __host__ __device__ __forceinline__ explicit Stage(Carver carver)
      : q_decayed(carver.take<E>(chunk * wide)),
        k_decayed(carver.take<E>(chunk * wide)),
        k_to_end(carver.take<E>(chunk * wide)),
        m(carver.take<E>(chunk * square)),
        aqk(carver.take<E>(chunk * square)),
        values(carver.take<E>(chunk * narrow)) {}
};

template <class E, bool fast>
struct ScanShared {
  static constexpr int leading = columns + skew<E>;
  E* state;               // [k_padded, 32]
  E *errors, *r;          // [64, 32]: v - (decayed k) S, then R; on the way back B dR, then -beta Y
  E* d_o;                 // [64, 32]; on the way back, unless fast
  float* beta;            // [64]
  unsigned char* stages;  // two, unless not fast
  __host__ __device__ __forceinline__ ScanShared(Carver& carver, int k_padded)
      : state(carver.take<E>(k_padded * leading)),
        errors(carver.take<E>(chunk * leading)),
        r(carver.take<E>(chunk * leading)),
        d_o(fast ? nullptr : carver.take<E>(chunk * leading)),
        beta(carver.take<float>(chunk)),
        stages(carver.take<unsigned char>(fast ? 2 * Stage<E>::bytes : 0)) {}
  __device__ __forceinline__ Stage<E> stage(int64_t index) const {
    return Stage<E>(Carver{stages + static_cast<size_t>(index % 2) * Stage<E>::bytes});
  }
};

// A chunk's operands where a version reads them.
template <class E, bool fast>
struct Operands {
  Matrix<E, false, fast> q_decayed, k_decayed, k_to_end, m, aqk;
  template <bool transposed>
  static __device__ __forceinline__ Matrix<E, transposed, fast> part(const Matrix<E, false, fast>& of, int row,
                                                                     int column) {
    return {of.at + static_cast<int64_t>(row) * of.leading + column, of.leading};
  }
};

template <class E, bool fast>
__device__ __forceinline__ Operands<E, fast> operands_of(const KdaParams& p, const Pair& pair, const Span& span,
                                                         const Stage<E>& stage) {
  if constexpr (fast) {
    constexpr int wide = Stage<E>::wide, square = Stage<E>::square;
    return {{stage.q_decayed, wide},
            {stage.k_decayed, wide},
            {stage.k_to_end, wide},
            {stage.m, square},
            {stage.aqk, square}};
  } else {
    const int64_t row = pair.local * p.rows + span.begin;
    const int64_t wide = row * p.k_padded, square = row * chunk;
    return {{static_cast<const E*>(p.q_decayed) + wide, p.k_padded},
            {static_cast<const E*>(p.k_decayed) + wide, p.k_padded},
            {static_cast<const E*>(p.k_to_end) + wide, p.k_padded},
            {static_cast<const E*>(p.m) + square, chunk},
            {static_cast<const E*>(p.aqk) + square, chunk}};
  }
}

template <class E>
__device__ __forceinline__ void stage_chunk(const KdaParams& p, const Pair& pair, const Span& span,
                                            const KdaRows& values, int first_column, const Stage<E>& stage) {
  const int64_t row = pair.local * p.rows + span.begin, wide = row * 128, square = row * chunk;
  const int count = span.count();
  stage_rows(stage.q_decayed, Stage<E>::wide, static_cast<const E*>(p.q_decayed) + wide, 128, 128, count);
  stage_rows(stage.k_decayed, Stage<E>::wide, static_cast<const E*>(p.k_decayed) + wide, 128, 128, count);
  stage_rows(stage.k_to_end, Stage<E>::wide, static_cast<const E*>(p.k_to_end) + wide, 128, 128, count);
  stage_rows(stage.m, Stage<E>::square, static_cast<const E*>(p.m) + square, chunk, chunk, count);
  stage_rows(stage.aqk, Stage<E>::square, static_cast<const E*>(p.aqk) + square, chunk, chunk, count);
  stage_rows(stage.values, Stage<E>::narrow, row_of<E>(values, pair, span.begin) + first_column, values.token, columns,
             count);
}

// What a warp holds of the state: rows 16 (warp + 8 i) and on, all 32 columns.
template <int tiles>
struct State {
  float sums[tiles][4][4];

  template <class Run>  // run(row, column, value)
  __device__ __forceinline__ void each(int k_padded, Run&& run) {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      const int first = sub_block * (warp + i * num_warps);
      if (first < k_padded) each_sum(sums[i], [&](int row, int column, float& sum) { run(first + row, column, sum); });
    }
  }
  template <class E>
  __device__ __forceinline__ void round_to(E* to, int leading, int k_padded) {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
#pragma unroll
    for (int i = 0; i < tiles; ++i) {
      const int first = sub_block * (warp + i * num_warps);
      if (first < k_padded)
        each_two(sums[i],
                 [&](int row, int column, float x, float y) { put_two(to + (first + row) * leading + column, x, y); });
    }
  }
  // From or to a contiguous [d_k, d_v] in fp32; null: zero.
  __device__ __forceinline__ void load(const KdaParams& p, const float* from, int first_column) {
    each(p.k_padded, [&](int row, int column, float& sum) {
      column += first_column;
      sum = from != nullptr && row < p.d_k && column < p.d_v ? from[static_cast<int64_t>(row) * p.d_v + column] : 0.0f;
    });
  }
  __device__ __forceinline__ void store(const KdaParams& p, float* to, int first_column) {
    each(p.k_padded, [&](int row, int column, float& sum) {
      column += first_column;
      if (row < p.d_k && column < p.d_v) to[static_cast<int64_t>(row) * p.d_v + column] = sum;
    });
  }
};

__device__ __forceinline__ int64_t state_offset(const KdaParams& p, const Pair& pair) {
  return (pair.batch * p.heads + pair.head) * p.d_k * p.d_v;
}

// The rounded state to its slot.
template <class E, bool fast>
__device__ __forceinline__ void keep_state(const KdaParams& p, const E* state, void* slots, const Pair& pair,
                                           int64_t slot, int first_column) {
  constexpr int leading = ScanShared<E, fast>::leading, step = fast ? skew<E> : 1;
  E* to = static_cast<E*>(slots) + (pair.local * p.slots + slot) * p.k_padded * p.v_padded + first_column;
  const int width = fast || p.v_padded - first_column > columns ? columns : p.v_padded - first_column;
  for (int n = static_cast<int>(threadIdx.x) * step; n < p.k_padded * width; n += threads * step) {
    const int row = n / width, column = n % width;
    using Step = Pack<E, step>;
    *reinterpret_cast<Step*>(to + static_cast<int64_t>(row) * p.v_padded + column) =
        *reinterpret_cast<const Step*>(state + row * leading + column);
  }
}

__device__ __forceinline__ void load_beta(const KdaParams& p, const Pair& pair, const Span& span, float* beta) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < chunk)
    beta[thread] = thread < span.count() ? safe_beta(*row_of<float>(p.beta, pair, span.begin + thread)) : 0.0f;
}

// The state's decay over a chunk, then += left^T right over the chunk's tokens.
template <int tiles>
__device__ __forceinline__ void decay_state(State<tiles>& state, const KdaParams& p, const float* decay) {
  state.each(p.k_padded, [&](int row, int, float& sum) { sum *= decay[row]; });
}
template <class E, bool fast, int tiles>
__device__ __forceinline__ void add_to_state(State<tiles>& state, int k_padded, const Matrix<E, false, fast>& left,
                                             const E* right, int right_leading) {
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
#pragma unroll
  for (int i = 0; i < tiles; ++i) {
    const int first = sub_block * (warp + i * num_warps);
    if (first < k_padded)
      multiply(state.sums[i], Operands<E, fast>::template part<true>(left, 0, first),
               Matrix<E, false, true>{right, right_leading}, chunk);
  }
}

// A thread's place in the [64, 32] products: a warp has 16 rows and 16 columns.
struct Tile {
  int row, column;
};
__device__ __forceinline__ Tile tile_of_warp() {
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  return {warp % num_sub_blocks * sub_block, warp / num_sub_blocks * 16};
}

template <class E, bool fast, bool for_backward>
__device__ __forceinline__ void scan_chunk(const KdaParams& p, const Pair& pair, const Span& span, int first_column,
                                           const ScanShared<E, fast>& shared, const Stage<E>& stage,
                                           State<fast ? 1 : max_state_tiles>& state) {
  constexpr int leading = ScanShared<E, fast>::leading;
  using Right = Matrix<E, false, true>;
  const int k_padded = fast ? 128 : p.k_padded, count = span.count();
  const Operands<E, fast> in = operands_of<E, fast>(p, pair, span, stage);
  const Tile tile = tile_of_warp();
  float sums[2][4], outputs[2][4];
  clear(sums), clear(outputs);
  multiply(sums, in.template part<false>(in.k_decayed, tile.row, 0), Right{shared.state + tile.column, leading},
           k_padded);
  if constexpr (!for_backward)
    multiply(outputs, in.template part<false>(in.q_decayed, tile.row, 0), Right{shared.state + tile.column, leading},
             k_padded);
  each_sum(sums, [&](int row, int column, float sum) {
    row += tile.row, column += tile.column;
    float v = 0.0f;
    if constexpr (fast) {
      v = to_float(stage.values[row * Stage<E>::narrow + column]);
    } else if (row < count && first_column + column < p.d_v) {
      v = to_float(row_of<E>(p.v, pair, span.begin + row)[first_column + column]);
    }
    shared.errors[row * leading + column] = from_float<E>(row < count ? v - sum : 0.0f);
  });
  __syncthreads();
  clear(sums);
  multiply(sums, in.template part<false>(in.m, tile.row, 0), Right{shared.errors + tile.column, leading},
           tile.row + sub_block);
  each_two(sums, [&](int row, int column, float x, float y) {
    row += tile.row, column += tile.column;
    const float beta = shared.beta[row];
    x = row < count ? beta * x : 0.0f, y = row < count ? beta * y : 0.0f;
    put_two(shared.r + row * leading + column, x, y);
    if constexpr (for_backward) {
      if (row < count && first_column + column < p.v_padded)
        put_two(static_cast<E*>(p.r) + (pair.local * p.rows + span.begin + row) * p.v_padded + first_column + column, x,
                y);
    }
  });
  __syncthreads();
  if constexpr (!for_backward) {
    multiply(outputs, in.template part<false>(in.aqk, tile.row, 0), Right{shared.r + tile.column, leading},
             tile.row + sub_block);
    each_two(outputs, [&](int row, int column, float x, float y) {
      row += tile.row, column += tile.column + first_column;
      if (row >= count) return;
      E* o = row_of<E>(p.o, pair, span.begin + row) + column;
      if constexpr (fast) {
        put_two(o, x, y);
      } else {
        if (column < p.d_v) o[0] = from_float<E>(x);
        if (column + 1 < p.d_v) o[1] = from_float<E>(y);
      }
    });
  }
  if (!span.last || (span.sequence_last && p.final_state != nullptr)) {
    decay_state(state, p, p.decays + (pair.local * p.slots + slot_after(span, p)) * p.k_padded);
    add_to_state<E, fast>(state, k_padded, in.k_to_end, shared.r, leading);
  }
}

template <class E, bool fast, bool for_backward>
__global__ void __launch_bounds__(threads, 1) scan_kernel(const KdaParams p) {
  LAMINA_DYNAMIC_SHARED(unsigned char, memory);
  Carver carver{memory};
  const ScanShared<E, fast> shared(carver, p.k_padded);
  const Pair pair = pair_of(p, blockIdx.x);
  const int first_column = static_cast<int>(blockIdx.y) * columns, k_padded = fast ? 128 : p.k_padded;
  const int64_t count = num_chunks(p.chunks, pair.batch);
  State<fast ? 1 : max_state_tiles> state;
  if constexpr (fast) {
    stage_chunk(p, pair, span_of(p.chunks, pair.batch, 0), p.v, first_column, shared.stage(0));
    lamina::cuda::cp_async_commit();
  }
  for (int64_t index = 0; index < count; ++index) {
    const Span span = span_of(p.chunks, pair.batch, index);
    if (span.first) {
      const bool given = span.sequence_first && p.initial_state != nullptr;
      state.load(p, given ? p.initial_state + state_offset(p, pair) : nullptr, first_column);
    }
    state.round_to(shared.state, ScanShared<E, fast>::leading, k_padded);
    load_beta(p, pair, span, shared.beta);
    if constexpr (fast) lamina::cuda::cp_async_wait<0>();
    __syncthreads();  // the chunk is here, and the stage of the one before has been read
    if constexpr (fast) {
      if (index + 1 < count)
        stage_chunk(p, pair, span_of(p.chunks, pair.batch, index + 1), p.v, first_column, shared.stage(index + 1));
      lamina::cuda::cp_async_commit();
    }
    if (for_backward && has_state_before(span, p))
      keep_state<E, fast>(p, shared.state, p.states, pair, slot_before(span), first_column);
    scan_chunk<E, fast, for_backward>(p, pair, span, first_column, shared, shared.stage(index), state);
  }
  if (!for_backward && p.final_state != nullptr) state.store(p, p.final_state + state_offset(p, pair), first_column);
}

// dO's 32 columns in padded form, for this kernel and for the next.
template <class E>
__device__ __forceinline__ void copy_d_o(const KdaParams& p, const Pair& pair, const Span& span, int first_column,
                                         int leading, E* shared_d_o) {
  for (int n = static_cast<int>(threadIdx.x); n < chunk * columns; n += threads) {
    const int row = n / columns, column = n % columns;
    const bool valid = row < span.count() && first_column + column < p.d_v;
    const E value = valid ? row_of<E>(p.d_o, pair, span.begin + row)[first_column + column] : from_float<E>(0.0f);
    shared_d_o[row * leading + column] = value;
    if (row < span.count() && first_column + column < p.v_padded)
      static_cast<E*>(p.d_o_copy)[(pair.local * p.rows + span.begin + row) * p.v_padded + first_column + column] =
          value;
  }
}

template <class E, bool fast>
__device__ __forceinline__ void scan_chunk_back(const KdaParams& p, const Pair& pair, const Span& span,
                                                int first_column, const ScanShared<E, fast>& shared,
                                                const Stage<E>& stage, State<fast ? 1 : max_state_tiles>& state) {
  constexpr int leading = ScanShared<E, fast>::leading;
  using Right = Matrix<E, false, true>;
  const int k_padded = fast ? 128 : p.k_padded, count = span.count();
  const Operands<E, fast> in = operands_of<E, fast>(p, pair, span, stage);
  const E* d_o = fast ? stage.values : shared.d_o;
  const Tile tile = tile_of_warp();
  float sums[2][4];
  clear(sums);
  multiply(sums, in.template part<true>(in.aqk, tile.row, tile.row),
           Right{d_o + tile.row * leading + tile.column, leading}, chunk - tile.row);
  multiply(sums, in.template part<false>(in.k_to_end, tile.row, 0), Right{shared.state + tile.column, leading},
           k_padded);
  each_two(sums, [&](int row, int column, float x, float y) {
    row += tile.row, column += tile.column;
    const float beta = shared.beta[row];
    put_two(shared.errors + row * leading + column, row < count ? beta * x : 0.0f, row < count ? beta * y : 0.0f);
  });
  __syncthreads();
  clear(sums);
  multiply(sums, in.template part<true>(in.m, tile.row, tile.row),
           Right{shared.errors + tile.row * leading + tile.column, leading}, chunk - tile.row);
  each_two(sums, [&](int row, int column, float x, float y) {
    row += tile.row, column += tile.column;
    const bool valid = row < count;
    put_two(shared.r + row * leading + column, valid ? -x : 0.0f, valid ? -y : 0.0f);
    column += first_column;
    if (!valid || column >= p.v_padded) return;
    put_two(static_cast<E*>(p.beta_y) + (pair.local * p.rows + span.begin + row) * p.v_padded + column, x, y);
    E* dv = row_of<E>(p.dv, pair, span.begin + row) + column;
    if constexpr (fast) {
      put_two(dv, x, y);
    } else {
      if (column < p.d_v) dv[0] = from_float<E>(x);
      if (column + 1 < p.d_v) dv[1] = from_float<E>(y);
    }
  });
  __syncthreads();
  if (!span.first || (span.sequence_first && p.d_initial_state != nullptr)) {
    if (has_gradient_after(span, p))
      decay_state(state, p, p.decays + (pair.local * p.slots + slot_after(span, p)) * p.k_padded);
    add_to_state<E, fast>(state, k_padded, in.q_decayed, d_o, leading);
    add_to_state<E, fast>(state, k_padded, in.k_decayed, shared.r, leading);
  }
}

template <class E, bool fast>
__global__ void __launch_bounds__(threads, 1) scan_back_kernel(const KdaParams p) {
  LAMINA_DYNAMIC_SHARED(unsigned char, memory);
  Carver carver{memory};
  const ScanShared<E, fast> shared(carver, p.k_padded);
  const Pair pair = pair_of(p, blockIdx.x);
  const int first_column = static_cast<int>(blockIdx.y) * columns, k_padded = fast ? 128 : p.k_padded;
  const int64_t count = num_chunks(p.chunks, pair.batch);
  State<fast ? 1 : max_state_tiles> state;
  if constexpr (fast) {
    stage_chunk(p, pair, span_of(p.chunks, pair.batch, count - 1), p.d_o, first_column, shared.stage(count - 1));
    lamina::cuda::cp_async_commit();
  }
  for (int64_t index = count - 1; index >= 0; --index) {
    const Span span = span_of(p.chunks, pair.batch, index);
    if (span.last) {
      const bool given = span.sequence_last && p.d_final_state != nullptr;
      state.load(p, given ? p.d_final_state + state_offset(p, pair) : nullptr, first_column);
    }
    state.round_to(shared.state, ScanShared<E, fast>::leading, k_padded);
    load_beta(p, pair, span, shared.beta);
    if constexpr (fast)
      lamina::cuda::cp_async_wait<0>();
    else
      copy_d_o(p, pair, span, first_column, ScanShared<E, fast>::leading, shared.d_o);
    __syncthreads();  // the chunk is here, and the stage of the one before has been read
    if constexpr (fast) {
      if (index > 0)
        stage_chunk(p, pair, span_of(p.chunks, pair.batch, index - 1), p.d_o, first_column, shared.stage(index - 1));
      lamina::cuda::cp_async_commit();
    }
    if (has_gradient_after(span, p))
      keep_state<E, fast>(p, shared.state, p.d_states, pair, slot_after(span, p), first_column);
    scan_chunk_back<E, fast>(p, pair, span, first_column, shared, shared.stage(index), state);
    if constexpr (!fast) __syncthreads();  // dO has been read
  }
  if (p.d_initial_state != nullptr) state.store(p, p.d_initial_state + state_offset(p, pair), first_column);
}

template <class E, bool fast>
void launch_scan(void (*kernel)(KdaParams), const KdaParams& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.num_pairs), static_cast<unsigned>((p.v_padded + columns - 1) / columns));
  launch(kernel, grid, dim3(threads), shared_bytes<ScanShared<E, fast>>(p.k_padded), stream, p);
}

template <class E, bool fast>
void scan(const KdaParams& p, bool for_backward, cudaStream_t stream) {
  launch_scan<E, fast>(for_backward ? scan_kernel<E, fast, true> : scan_kernel<E, fast, false>, p, stream);
}

}  // namespace kda

void launch_kda_scan(const KdaParams& params, bool for_backward, cudaStream_t stream) {
  if (params.fast)
    kda::scan<__nv_bfloat16, true>(params, for_backward, stream);
  else if (params.bf16)
    kda::scan<__nv_bfloat16, false>(params, for_backward, stream);
  else
    kda::scan<float, false>(params, for_backward, stream);
}

void launch_kda_scan_back(const KdaParams& params, cudaStream_t stream) {
  using bf = __nv_bfloat16;
  if (params.fast)
    kda::launch_scan<bf, true>(kda::scan_back_kernel<bf, true>, params, stream);
  else if (params.bf16)
    kda::launch_scan<bf, false>(kda::scan_back_kernel<bf, false>, params, stream);
  else
    kda::launch_scan<float, false>(kda::scan_back_kernel<float, false>, params, stream);
}

}  // namespace lamina::ops::cuda
