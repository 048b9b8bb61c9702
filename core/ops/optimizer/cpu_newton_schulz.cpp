#include "core/ops/optimizer/implementations.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/matmul/single_thread_product.h"
#include "core/ops/simd/parameters.h"
#include "core/ops/simd/tile_queue.h"
#define HWY_TARGET_INCLUDE "core/ops/optimizer/cpu_newton_schulz.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_NEWTON_SCHULZ
#define LAMINA_CORE_OPS_CPU_NEWTON_SCHULZ
namespace lamina::ops::cpu {
namespace {

// alpha x + beta s of one row, where x may be null; kept in fp32, as a product's bf16 operand, or both.
struct RowSum {
  const float *x, *s;
  float alpha, beta;
  float* out;
  bf16* low;
  size_t count;
};

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

void sum_row(const RowSum& row_sum) {
  const V factor = hn::Set(D(), row_sum.alpha), scale = hn::Set(D(), row_sum.beta);
  const float *from = row_sum.x, *product = row_sum.s;
  float* to = row_sum.out;
  bf16* to_low = row_sum.low;
  each_vector(row_sum.count, [&](size_t i, auto part) LAMINA_VECTOR_BODY {
    V sum = hn::Mul(scale, load(part, product + i));
    if (from != nullptr) sum = hn::MulAdd(factor, load(part, from + i), sum);
    if (to != nullptr) store(part, sum, to + i);
    if (to_low != nullptr) store(part, sum, to_low + i);
  });
}

float sum_of_squares(const float* x, size_t count) {
  V sum[4] = {hn::Zero(D()), hn::Zero(D()), hn::Zero(D()), hn::Zero(D())};
  each_vector_by_4(count, [&](size_t i, auto part, auto k) LAMINA_VECTOR_BODY {
    const V v = load(part, x + i);
    sum[k] = hn::MulAdd(v, v, sum[k]);
  });
  return sum_of_lanes(sum);
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(sum_row);
HWY_EXPORT(sum_of_squares);

namespace {

constexpr float quintic_a = 3.4445f, quintic_b = -4.7750f, quintic_c = 2.0315f;
constexpr int64_t tile_rows = 256, tile_columns = 256;
// Matrices that are worked on together, step by step: enough for every thread, and few enough for the caches.
constexpr int64_t bytes_per_thread = int64_t{1} << 22;

struct Tile {
  const SingleThreadProduct* product;
  int64_t matrix, row, rows, column, columns;
};

// A batch of matrices [count, rows, columns] and what products read of them, which is the same where they are in fp32.
struct Matrices {
  int64_t rows, columns;
  float* values;
  bf16* low;

  Matrices(OpContext& ctx, int64_t count, int64_t num_rows, int64_t num_columns, bool with_values, bool with_low)
      : rows(num_rows), columns(num_columns), values(nullptr), low(nullptr) {
    const Shape shape{count, rows, columns};
    if (with_values) values = ctx.scratch.take(DType::f32, shape).as<float>();
    if (with_low) low = ctx.scratch.take(DType::bf16, shape).as<bf16>();
  }
  int64_t offset(int64_t matrix, int64_t row, int64_t column) const { return (matrix * rows + row) * columns + column; }
  const void* operand(int64_t at) const {
    return low != nullptr ? static_cast<const void*>(low + at) : static_cast<const void*>(values + at);
  }
};

// out = alpha addend + beta a b, for every matrix; b may be given transposed.
struct Stage {
  const Matrices &a, &b;
  bool b_transposed;
  float alpha, beta;
  const Matrices* addend;  // or null
  const Matrices& out;
};

void run_stage(OpContext& ctx, int64_t count, const Stage& stage) {
  const Matrices& out = stage.out;
  const DType dtype = stage.a.low != nullptr ? DType::bf16 : DType::f32;
  const bool widened = !ctx.bf16_products.is_native(ProductClass::tile);
  std::vector<Tile> tiles;
  int64_t scratch_bytes = 0;
  for (int64_t matrix = 0; matrix < count; ++matrix) {
    for_parts(out.rows, tile_rows, [&](int64_t row, int64_t rows) {
      for_parts(out.columns, tile_columns, [&](int64_t column, int64_t columns) {
        const SingleThreadProduct* product =
            SingleThreadProduct::get({rows, columns, stage.a.columns, dtype, DType::f32, false, stage.b_transposed,
                                      stage.a.columns, stage.b.columns, columns, widened});
        tiles.push_back({product, matrix, row, rows, column, columns});
        scratch_bytes = std::max(scratch_bytes, round_up_to(product->scratch_bytes(), 64) + 4 * rows * columns);
      });
    });
  }
  const auto sum = HWY_DYNAMIC_DISPATCH(sum_row);
  for_tiles<Tile>(ctx, tiles, scratch_bytes, [&](const Tile& tile, char* scratch) {
    auto* result = reinterpret_cast<float*>(scratch + round_up_to(tile.product->scratch_bytes(), 64));
    const int64_t right =
        stage.b_transposed ? stage.b.offset(tile.matrix, tile.column, 0) : stage.b.offset(tile.matrix, 0, tile.column);
    tile.product->run(stage.a.operand(stage.a.offset(tile.matrix, tile.row, 0)), stage.b.operand(right), result,
                      scratch);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t at = stage.out.offset(tile.matrix, tile.row + r, tile.column);
      sum({stage.addend != nullptr ? stage.addend->values + at : nullptr, result + r * tile.columns, stage.alpha,
           stage.beta, stage.out.values != nullptr ? stage.out.values + at : nullptr,
           stage.out.low != nullptr ? stage.out.low + at : nullptr, static_cast<size_t>(tile.columns)});
    }
  });
}

// x [rows, columns] transposed into y [columns, rows], in blocks that stay in cache.
void transpose(const float* x, int64_t rows, int64_t columns, float* y) {
  constexpr int64_t side = 32;
  for (int64_t r = 0; r < rows; r += side) {
    for (int64_t c = 0; c < columns; c += side) {
      for (int64_t i = c; i < std::min(columns, c + side); ++i) {
        for (int64_t j = r; j < std::min(rows, r + side); ++j) y[i * rows + j] = x[j * columns + i];
      }
    }
  }
}

class Iteration {
 public:
  Iteration(OpContext& ctx, const NewtonSchulz& args, int64_t first, int64_t count)
      : ctx_(ctx), args_(args), first_(first), count_(count) {}

  void run() {
    const ArenaScope scope(ctx_.scratch);
    const bool low = args_.products == DType::bf16;
    const int64_t rows = std::min(args_.x.size(1), args_.x.size(2)),
                  columns = std::max(args_.x.size(1), args_.x.size(2));
    Matrices x(ctx_, count_, rows, columns, true, low), next(ctx_, count_, rows, columns, true, low);
    const Matrices gram(ctx_, count_, rows, rows, true, low), polynomial(ctx_, count_, rows, rows, !low, low);
    normalise(x);
    for (int step = 0; step < args_.num_steps; ++step) {
      run_stage(ctx_, count_, {x, x, true, 0.0f, 1.0f, nullptr, gram});
      run_stage(ctx_, count_, {gram, gram, false, quintic_b, quintic_c, &gram, polynomial});
      run_stage(ctx_, count_, {polynomial, x, false, quintic_a, 1.0f, &x, next});
      std::swap(x, next);
    }
    write_back(x);
  }

 private:
  bool tall() const { return args_.x.size(1) > args_.x.size(2); }
  float* source(int64_t matrix) const {
    return args_.x.as<float>() + (first_ + matrix) * args_.x.size(1) * args_.x.size(2);
  }

  void normalise(const Matrices& x) const {
    const int64_t size = x.rows * x.columns;
    const auto squares = HWY_DYNAMIC_DISPATCH(sum_of_squares);
    const auto sum = HWY_DYNAMIC_DISPATCH(sum_row);
    lamina::cpu::parallel_for(count_, row_grain(size), [&](int64_t begin, int64_t end) {
      for (int64_t matrix = begin; matrix < end; ++matrix) {
        const float* from = source(matrix);
        double total = 0;
        for (int64_t row = 0; row < x.rows; ++row) {
          total += static_cast<double>(squares(from + row * x.columns, static_cast<size_t>(x.columns)));
        }
        const float factor = 1.0f / (static_cast<float>(std::sqrt(total)) + 1e-7f);
        float* to = x.values + matrix * size;
        if (tall()) {
          transpose(from, args_.x.size(1), args_.x.size(2), to);
          from = to;
        }
        sum({nullptr, from, 0.0f, factor, to, x.low != nullptr ? x.low + matrix * size : nullptr,
             static_cast<size_t>(size)});
      }
    });
  }

  void write_back(const Matrices& x) const {
    const int64_t size = x.rows * x.columns;
    lamina::cpu::parallel_for(count_, row_grain(size), [&](int64_t begin, int64_t end) {
      for (int64_t matrix = begin; matrix < end; ++matrix) {
        const float* from = x.values + matrix * size;
        if (tall())
          transpose(from, x.rows, x.columns, source(matrix));
        else
          std::copy_n(from, size, source(matrix));
      }
    });
  }

  OpContext& ctx_;
  const NewtonSchulz& args_;
  int64_t first_, count_;
};

}  // namespace

const char* newton_schulz_refuses(const NewtonSchulz& args) {
  return refuses_f64(args.x);
}

void newton_schulz(OpContext& ctx, const NewtonSchulz& args) {
  SingleThreadProduct::trim();
  const int64_t bytes = args.x.size(1) * args.x.size(2) * 4;
  const int64_t together =
      std::clamp<int64_t>(bytes_per_thread * lamina::cpu::num_threads() / bytes, 1, args.x.size(0));
  for (int64_t first = 0; first < args.x.size(0); first += together) {
    Iteration(ctx, args, first, std::min(together, args.x.size(0) - first)).run();
  }
}

}  // namespace lamina::ops::cpu
#endif
