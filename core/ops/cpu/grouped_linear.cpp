// Each expert's product is cut into tiles, and the threads take the tiles of all experts one after the other: a hot expert keeps
// all of them busy, and an empty one costs nothing. The cut depends on the shapes alone, so results don't depend on the number of
// threads.
#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "core/ops/cpu/bf16_outer_products.h"
#include "core/ops/cpu/experts.h"
#include "core/ops/cpu/single_thread_product.h"
#include "core/ops/cpu/tile_queue.h"

namespace lamina::ops::cpu {
namespace {

// A tile's operands and result fit a core's cache, and its rows pay for packing the weights.
constexpr int64_t tile_rows = 256, tile_columns = 256;
// Rows of bf16 are rounded up to whole steps, so that there are only tile_rows / row_step shapes: see SingleThreadProduct.
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
  std::span<const int64_t> offsets;
  bool transposed;
};

struct RowTile {
  const SingleThreadProduct* product;
  size_t expert;
  int64_t row, rows, padded_rows, column, columns;
};

// bf16 rows that make no whole step are padded in a copy, and only the rows that exist are copied out.
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
  const bool low = args.a.dtype == DType::bf16;
  std::vector<RowTile> tiles;
  int64_t scratch_bytes = 0;
  SingleThreadProduct::trim();
  for (size_t e = 0; e < args.weights.size(); ++e) {
    for (int64_t row = args.offsets[e]; row < args.offsets[e + 1]; row += tile_rows) {
      const int64_t rows = std::min(tile_rows, args.offsets[e + 1] - row);
      const int64_t padded = low ? round_up_to(rows, row_step) : rows;
      for_parts(n, tile_columns, [&](int64_t column, int64_t columns) {
        const bool direct = padded == rows;
        const SingleThreadProduct* product = SingleThreadProduct::get(
            {padded, columns, k, args.a.dtype, args.c.dtype, false, args.transposed, direct ? args.a.stride(0) : k,
             args.weights[e].stride(0), direct ? args.c.stride(0) : columns});
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

// bf16 sums over an expert's rows are cut into few lengths, and a rest that is padded with zeros to whole steps.
constexpr std::array<int64_t, 2> sum_lengths = {1024, 256};
struct Sums {
  std::array<const SingleThreadProduct*, sum_lengths.size() + 1> products;  // the last one: the rest's
};

// Calls body(index into Sums::products, begin, length).
template <class Body>
void for_sums(int64_t rows, Body&& body) {
  int64_t begin = 0;
  for (size_t index = 0; index < sum_lengths.size(); ++index) {
    for (; rows - begin >= sum_lengths[index]; begin += sum_lengths[index]) body(index, begin, sum_lengths[index]);
  }
  if (begin < rows) body(sum_lengths.size(), begin, rows - begin);
}

struct WeightTile {
  Sums sums;
  size_t expert;
  int64_t row, rows, column, columns;  // of dw
};

class WeightProducts {
 public:
  explicit WeightProducts(const GroupedLinearWeightGradient& args) : args_(args) {}

  void run(OpContext& ctx) {
    SingleThreadProduct::trim();
    for (size_t e = 0; e < args_.dweights.size(); ++e) {
      const int64_t num_rows = args_.offsets[e + 1] - args_.offsets[e];
      if (num_rows == 0) continue;
      // Of an expert with many rows even a small tile is much work. A bf16 tile is summed in cache before it is added to dw.
      const int64_t side = num_rows >= 1024 ? 128 : 256;
      for_parts(args_.dy.size(1), through_scratch_ ? 64 : side, [&](int64_t row, int64_t rows) {
        for_parts(args_.x.size(1), through_scratch_ ? 512 : 2 * side, [&](int64_t column, int64_t columns) {
          WeightTile tile{{}, e, row, rows, column, columns};
          if (through_scratch_) tile.sums = sums_of(num_rows, rows, columns);
          if (low_ && !through_scratch_) scratch_bytes_ = std::max(scratch_bytes_, scratch_bytes(outer_products(tile)));
          tiles_.push_back(tile);
        });
      });
    }
    for_tiles<WeightTile>(ctx, tiles_, scratch_bytes_, [&](const WeightTile& tile, char* scratch) {
      if (through_scratch_)
        run_bf16(tile, scratch);
      else if (low_)
        add_outer_products(outer_products(tile), scratch);
      else
        run_f32(tile);
    });
  }

 private:
  Sums sums_of(int64_t num_rows, int64_t rows, int64_t columns) {
    Sums sums{};
    for_sums(num_rows, [&](size_t index, int64_t, int64_t length) {
      const bool direct = length % row_step == 0;
      const int64_t padded = round_up_to(length, row_step);
      const SingleThreadProduct* product =
          SingleThreadProduct::get({rows, columns, padded, DType::bf16, DType::f32, true, false,
                                    direct ? args_.dy.stride(0) : rows, direct ? args_.x.stride(0) : columns, columns});
      sums.products[index] = product;
      scratch_bytes_ =
          std::max(scratch_bytes_, round_up_to(product->scratch_bytes(), 64) + round_up_to(4 * rows * columns, 64) +
                                       round_up_to(2 * padded * rows, 64) + 2 * padded * columns);
    });
    return sums;
  }
  Bf16OuterProducts outer_products(const WeightTile& tile) const {
    const int64_t first = args_.offsets[tile.expert];
    const TensorView& dw = args_.dweights[tile.expert];
    return {reinterpret_cast<const bf16*>(at(args_.dy, first, tile.row)),
            reinterpret_cast<const bf16*>(at(args_.x, first, tile.column)),
            reinterpret_cast<float*>(at(dw, tile.row, tile.column)),
            args_.offsets[tile.expert + 1] - first,
            tile.rows,
            tile.columns,
            args_.dy.stride(0),
            args_.x.stride(0),
            dw.stride(0)};
  }
  void run_f32(const WeightTile& tile) const {
    const int64_t begin = args_.offsets[tile.expert], end = args_.offsets[tile.expert + 1];
    const TensorView& dw = args_.dweights[tile.expert];
    const SingleThreadProduct product({tile.rows, tile.columns, end - begin, DType::f32, DType::f32, true, false,
                                       args_.dy.stride(0), args_.x.stride(0), dw.stride(0)});
    product.run(at(args_.dy, begin, tile.row), at(args_.x, begin, tile.column), at(dw, tile.row, tile.column), nullptr,
                true);
  }
  void run_bf16(const WeightTile& tile, char* scratch) const {
    const int64_t first = args_.offsets[tile.expert], num_rows = args_.offsets[tile.expert + 1] - first;
    for_sums(num_rows, [&](size_t index, int64_t begin, int64_t length) {
      const SingleThreadProduct& product = *tile.sums.products[index];
      const int64_t padded = round_up_to(length, row_step);
      char* out = scratch + round_up_to(product.scratch_bytes(), 64);
      char* copy = out + round_up_to(4 * tile.rows * tile.columns, 64);
      const void* dy = at(args_.dy, first + begin, tile.row);
      const void* x = at(args_.x, first + begin, tile.column);
      if (padded != length) {
        dy = copy_rows(args_.dy, first + begin, length, padded, tile.row, tile.rows, copy);
        copy += round_up_to(2 * padded * tile.rows, 64);
        x = copy_rows(args_.x, first + begin, length, padded, tile.column, tile.columns, copy);
      }
      product.run(dy, x, out, scratch);
      const auto* sum = reinterpret_cast<const float*>(out);
      for (int64_t r = 0; r < tile.rows; ++r) {
        auto* dw = reinterpret_cast<float*>(at(args_.dweights[tile.expert], tile.row + r, tile.column));
        for (int64_t i = 0; i < tile.columns; ++i) dw[i] += sum[r * tile.columns + i];
      }
    });
  }

  const GroupedLinearWeightGradient& args_;
  const bool low_ = args_.x.dtype == DType::bf16;
  const bool through_scratch_ = low_ && !has_bf16_outer_products();
  std::vector<WeightTile> tiles_;
  int64_t scratch_bytes_ = 0;
};

}  // namespace

const char* refuses(const GroupedLinear& args) {
  if (args.x.dtype == DType::f64) return "oneDNN has no float64";
  return args.x.size(1) == 0 ? "a sum over nothing" : nullptr;
}
const char* refuses(const GroupedLinearInputGradient& args) {
  if (args.dy.dtype == DType::f64) return "oneDNN has no float64";
  return args.dy.size(1) == 0 ? "a sum over nothing" : nullptr;
}
const char* refuses(const GroupedLinearWeightGradient& args) {
  return args.x.dtype == DType::f64 ? "oneDNN has no float64" : nullptr;
}

void grouped_linear(OpContext& ctx, const GroupedLinear& args) {
  multiply_rows(ctx, {args.x, args.y, args.weights, args.offsets, true});
}
void grouped_linear_input_gradient(OpContext& ctx, const GroupedLinearInputGradient& args) {
  multiply_rows(ctx, {args.dy, args.dx, args.weights, args.offsets, false});
}
void grouped_linear_weight_gradient(OpContext& ctx, const GroupedLinearWeightGradient& args) {
  WeightProducts(args).run(ctx);
}

}  // namespace lamina::ops::cpu
