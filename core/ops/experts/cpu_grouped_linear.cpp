// Each expert's product is cut into tiles, and the threads take the tiles of all experts one after the other: a hot expert keeps
// all of them busy, and an empty one costs nothing. The cut depends on the shapes alone, so results don't depend on the number of
// threads.
#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "core/ops/experts/implementations.h"
#include "core/ops/matmul/bf16_outer_products.h"
#include "core/ops/matmul/single_thread_product.h"
#include "core/ops/simd/tile_queue.h"

namespace lamina::ops::cpu {
namespace {

// A tile's operands and result fit a core's cache, and its rows pay for packing the weights.
constexpr int64_t tile_rows = 256, tile_columns = 256;
// Rows of native bf16 products are rounded up to whole steps, so that there are only tile_rows / row_step shapes: see
// SingleThreadProduct.
constexpr int64_t row_step = 16;

char* at(const TensorView& matrix, int64_t row, int64_t column) {
  return static_cast<char*>(matrix.data) + (row * matrix.stride(0) + column) * size_of(matrix.dtype);
}

// A contiguous copy of `rows` rows of some columns, with zeros below up to `padded`.
char* copy_rows(const TensorView& matrix, int64_t row, int64_t rows, int64_t padded, int64_t column, int64_t columns,
                char* to) {
  const auto line = static_cast<size_t>(columns * size_of(matrix.dtype));
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + static_cast<size_t>(r) * line, at(matrix, row + r, column), line);
  std::memset(to + static_cast<size_t>(rows) * line, 0, static_cast<size_t>(padded - rows) * line);
  return to;
}

// c[r] = a[r] b_e, with b_e = w_e or its transpose.
struct RowProducts {
  TensorView a, c;
  std::span<const TensorView> weights;
  const int32_t* offsets;  // [experts + 1]
  bool transposed;
};

struct RowTile {
  const SingleThreadProduct* product;
  size_t expert;
  int64_t row, rows, padded_rows, column, columns;
};

// Rows that make no whole step are padded in a copy, and only the rows that exist are copied out.
void run_tile(const RowProducts& args, const RowTile& tile, char* scratch) {
  const TensorView& w = args.weights[tile.expert];
  const void* b = args.transposed ? at(w, tile.column, 0) : at(w, 0, tile.column);
  const char* a = at(args.a, tile.row, 0);
  char* c = at(args.c, tile.row, tile.column);
  if (tile.padded_rows == tile.rows) return tile.product->run(a, b, c, scratch);
  const int64_t k = args.a.size(1), line = tile.columns * size_of(args.c.dtype);
  char* out = scratch + round_up_to(tile.product->scratch_bytes(), 64);
  char* copy = out + round_up_to(tile.padded_rows * line, 64);
  tile.product->run(copy_rows(args.a, tile.row, tile.rows, tile.padded_rows, 0, k, copy), b, out, scratch);
  for (int64_t r = 0; r < tile.rows; ++r) {
    std::memcpy(at(args.c, tile.row + r, tile.column), out + r * line, static_cast<size_t>(line));
  }
}

void multiply_rows(OpContext& ctx, const RowProducts& args) {
  const int64_t k = args.a.size(1), n = args.c.size(1);
  const bool native = has_native_bf16_products() && ctx.bf16_products.is_native(ProductClass::tile);
  std::vector<RowTile> tiles;
  int64_t scratch_bytes = 0;
  SingleThreadProduct::trim();
  for (size_t e = 0; e < args.weights.size(); ++e) {
    const int64_t end = args.offsets[e + 1];
    for (int64_t row = args.offsets[e]; row < end; row += tile_rows) {
      const int64_t rows = std::min(tile_rows, end - row);
      const int64_t padded = args.a.dtype == DType::bf16 && native ? round_up_to(rows, row_step) : rows;
      for_parts(n, tile_columns, [&](int64_t column, int64_t columns) {
        const bool direct = padded == rows;
        const SingleThreadProduct* product = SingleThreadProduct::get(
            {padded, columns, k, args.a.dtype, args.c.dtype, false, args.transposed, direct ? args.a.stride(0) : k,
             args.weights[e].stride(0), direct ? args.c.stride(0) : columns, !native});
        tiles.push_back({product, e, row, rows, padded, column, columns});
        scratch_bytes = std::max(scratch_bytes, round_up_to(product->scratch_bytes(), 64) +
                                                    round_up_to(padded * columns * size_of(args.c.dtype), 64) +
                                                    padded * k * size_of(args.a.dtype));
      });
    }
  }
  for_tiles<RowTile>(ctx, tiles, scratch_bytes,
                     [&](const RowTile& tile, char* scratch) { run_tile(args, tile, scratch); });
}

// Through fp32, so many of an expert's rows at a time are widened that they stay in cache with the tile of dw.
constexpr int64_t widened_rows = 256;

struct WeightTile {
  size_t expert;
  int64_t row, rows, column, columns;  // of dw
};

class WeightProducts {
 public:
  WeightProducts(OpContext& ctx, const GroupedLinearWeightGradient& args)
      : ctx_(ctx),
        args_(args),
        offsets_(args.rows.offsets.as<int32_t>()),
        native_(has_native_bf16_products() && has_bf16_outer_products() &&
                ctx.bf16_products.is_native(ProductClass::expert_gradient)) {}

  void run() {
    const bool low = args_.x.dtype == DType::bf16;
    std::vector<WeightTile> tiles;
    int64_t bytes = 0;
    for (size_t e = 0; e < args_.dweights.size(); ++e) {
      const int64_t num_rows = offsets_[e + 1] - offsets_[e];
      if (num_rows == 0) continue;
      const int64_t side = num_rows >= 1024 ? 128 : 256;  // of an expert with many rows even a small tile is much work
      for_parts(args_.dy.size(1), side, [&](int64_t row, int64_t rows) {
        for_parts(args_.x.size(1), 2 * side, [&](int64_t column, int64_t columns) {
          tiles.push_back({e, row, rows, column, columns});
          if (!low) return;
          bytes = std::max(bytes, native_ ? scratch_bytes(outer_products(tiles.back()))
                                          : 4 * std::min(num_rows, widened_rows) * (rows + columns));
        });
      });
    }
    for_tiles<WeightTile>(ctx_, tiles, bytes, [&](const WeightTile& tile, char* scratch) {
      if (!low)
        run_f32(tile);
      else if (native_)
        add_outer_products(outer_products(tile), scratch);
      else
        run_widened(tile, reinterpret_cast<float*>(scratch));
    });
  }

 private:
  Bf16OuterProducts outer_products(const WeightTile& tile) const {
    const int64_t first = offsets_[tile.expert];
    const TensorView& dw = args_.dweights[tile.expert];
    return {reinterpret_cast<const bf16*>(at(args_.dy, first, tile.row)),
            reinterpret_cast<const bf16*>(at(args_.x, first, tile.column)),
            reinterpret_cast<float*>(at(dw, tile.row, tile.column)),
            offsets_[tile.expert + 1] - first,
            tile.rows,
            tile.columns,
            args_.dy.stride(0),
            args_.x.stride(0),
            dw.stride(0)};
  }
  // The tile of dw += dy^T x over `rows` rows of fp32.
  void add_f32(const WeightTile& tile, int64_t rows, const void* dy, int64_t dy_leading, const void* x,
               int64_t x_leading) const {
    const TensorView& dw = args_.dweights[tile.expert];
    const SingleThreadProduct product(
        {tile.rows, tile.columns, rows, DType::f32, DType::f32, true, false, dy_leading, x_leading, dw.stride(0)});
    product.run(dy, x, at(dw, tile.row, tile.column), nullptr, true);
  }
  void run_f32(const WeightTile& tile) const {
    const int64_t begin = offsets_[tile.expert], end = offsets_[tile.expert + 1];
    add_f32(tile, end - begin, at(args_.dy, begin, tile.row), args_.dy.stride(0), at(args_.x, begin, tile.column),
            args_.x.stride(0));
  }
  void run_widened(const WeightTile& tile, float* scratch) const {
    const int64_t end = offsets_[tile.expert + 1];
    for (int64_t begin = offsets_[tile.expert]; begin < end; begin += widened_rows) {
      const int64_t rows = std::min(widened_rows, end - begin);
      float *dy = scratch, *x = scratch + rows * tile.rows;
      widen_lines(reinterpret_cast<const bf16*>(at(args_.dy, begin, tile.row)), rows, tile.rows, args_.dy.stride(0),
                  dy);
      widen_lines(reinterpret_cast<const bf16*>(at(args_.x, begin, tile.column)), rows, tile.columns, args_.x.stride(0),
                  x);
      add_f32(tile, rows, dy, tile.rows, x, tile.columns);
    }
  }

  OpContext& ctx_;
  const GroupedLinearWeightGradient& args_;
  const int32_t* const offsets_;
  const bool native_;  // of bf16
};

}  // namespace

const char* grouped_linear_refuses(const GroupedLinear& args) {
  if (args.x.dtype == DType::f64) return "oneDNN has no float64";
  return args.x.size(1) == 0 ? "a sum over nothing" : nullptr;
}
const char* grouped_linear_input_gradient_refuses(const GroupedLinearInputGradient& args) {
  if (args.dy.dtype == DType::f64) return "oneDNN has no float64";
  return args.dy.size(1) == 0 ? "a sum over nothing" : nullptr;
}
const char* grouped_linear_weight_gradient_refuses(const GroupedLinearWeightGradient& args) {
  return args.x.dtype == DType::f64 ? "oneDNN has no float64" : nullptr;
}

void grouped_linear(OpContext& ctx, const GroupedLinear& args) {
  multiply_rows(ctx, {args.x, args.y, args.weights, args.rows.offsets.as<int32_t>(), true});
}
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args) {
  multiply_rows(ctx, {args.dy, args.dx, args.weights, args.rows.offsets.as<int32_t>(), false});
}
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args) {
  WeightProducts(ctx, args).run();
}

}  // namespace lamina::ops::cpu
