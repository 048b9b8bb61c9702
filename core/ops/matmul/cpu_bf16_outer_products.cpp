#include "core/ops/matmul/bf16_outer_products.h"

#include <algorithm>
#include <cstring>

#include <hwy/cache_control.h>

#include "core/base/error.h"

#define HWY_TARGET_INCLUDE "core/ops/matmul/cpu_bf16_outer_products.cpp"
#include "core/ops/simd/simd.h"
#include "core/ops/simd/simd_rows-inl.h"

#ifndef LAMINA_CORE_OPS_CPU_BF16_OUTER_PRODUCTS
#define LAMINA_CORE_OPS_CPU_BF16_OUTER_PRODUCTS
namespace lamina::ops::cpu {
namespace {

// Both operands are packed as pairs of consecutive depth, one 32-bit word each: panels [depth / 2][width] of the columns of a and
// of b. A chunk of depth of all panels fits L2.
constexpr int64_t block_rows = 8, panel_columns = 32, chunk_depth = 256;

int64_t round_up_to_whole(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Rows beyond the depth and columns beyond the width are zeros.
void pack_pairs(const bf16* from, int64_t leading, int64_t depth, int64_t width, int64_t panel, uint32_t* to) {
  const int64_t pairs = (depth + 1) / 2;
  for (int64_t first = 0; first < width; first += panel, to += pairs * panel) {
    const int64_t count = std::min(panel, width - first);
    for (int64_t k = 0; k < pairs; ++k) {
      const bf16* low = from + 2 * k * leading + first;
      const bf16* high = 2 * k + 1 < depth ? low + leading : nullptr;
      uint32_t* out = to + k * panel;
      if (count == panel && high != nullptr) {
        for (int64_t i = 0; i < panel; ++i) {
          out[i] = uint32_t{low[i].bits} | static_cast<uint32_t>(uint32_t{high[i].bits} << 16);
        }
        continue;
      }
      for (int64_t i = 0; i < panel; ++i) {
        const uint32_t lower = i < count ? low[i].bits : 0u, upper = i < count && high != nullptr ? high[i].bits : 0u;
        out[i] = lower | (upper << 16);
      }
    }
  }
}

}  // namespace
}  // namespace lamina::ops::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace lamina::ops::cpu::HWY_NAMESPACE {

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
constexpr bool pairs_are_native = true;

// sum += a_even b_even + a_odd b_odd, lane by lane. Written out because this Highway doesn't know the instruction.
HWY_INLINE V add_pairs(V sum, V a, V b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
}

// c[block_rows, panel_columns] += the panels' product; `next`, a block like c, is fetched meanwhile.
HWY_INLINE void multiply_panels(const uint32_t* HWY_RESTRICT a, const uint32_t* HWY_RESTRICT b, int64_t pairs,
                                float* HWY_RESTRICT c, int64_t c_leading, const float* next) {
  const hn::ScalableTag<uint32_t> words;
  V sum[block_rows][2];
#pragma GCC unroll 8
  for (int64_t r = 0; r < block_rows; ++r) {
    hwy::Prefetch(next + r * c_leading);
    hwy::Prefetch(next + r * c_leading + 16);
    sum[r][0] = hn::Zero(D());
    sum[r][1] = hn::Zero(D());
  }
  for (int64_t k = 0; k < pairs; ++k) {
    const V left = hn::BitCast(D(), hn::LoadU(words, b + k * panel_columns));
    const V right = hn::BitCast(D(), hn::LoadU(words, b + k * panel_columns + 16));
#pragma GCC unroll 8
    for (int64_t r = 0; r < block_rows; ++r) {
      const V row_pair = hn::BitCast(D(), hn::Set(words, a[k * block_rows + r]));
      sum[r][0] = add_pairs(sum[r][0], row_pair, left);
      sum[r][1] = add_pairs(sum[r][1], row_pair, right);
    }
  }
#pragma GCC unroll 8
  for (int64_t r = 0; r < block_rows; ++r) {
    float* at = c + r * c_leading;
    hn::StoreU(hn::Add(hn::LoadU(D(), at), sum[r][0]), D(), at);
    hn::StoreU(hn::Add(hn::LoadU(D(), at + 16), sum[r][1]), D(), at + 16);
  }
}

void outer_products(const Bf16OuterProducts& args, uint32_t* a, uint32_t* b) {
  const int64_t pairs = (args.depth + 1) / 2;
  pack_pairs(args.a, args.a_leading, args.depth, args.rows, block_rows, a);
  pack_pairs(args.b, args.b_leading, args.depth, args.columns, panel_columns, b);
  for (int64_t row = 0; row < args.rows; row += block_rows) {
    const int64_t rows = std::min(block_rows, args.rows - row);
    for (int64_t column = 0; column < args.columns; column += panel_columns) {
      const int64_t columns = std::min(panel_columns, args.columns - column);
      float* c = args.c + row * args.c_leading + column;
      const uint32_t *left = a + row * pairs, *right = b + column * pairs;
      if (rows == block_rows && columns == panel_columns) {
        const bool more = column + 2 * panel_columns <= args.columns;
        multiply_panels(left, right, pairs, c, args.c_leading, more ? c + panel_columns : c);
        continue;
      }
      HWY_ALIGN float edge[block_rows * panel_columns];
      std::memset(edge, 0, sizeof(edge));
      multiply_panels(left, right, pairs, edge, panel_columns, edge);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < columns; ++i) c[r * args.c_leading + i] += edge[r * panel_columns + i];
      }
    }
  }
}
#else
constexpr bool pairs_are_native = false;
void outer_products(const Bf16OuterProducts&, uint32_t*, uint32_t*) {}
#endif

bool native_pairs() {
  return pairs_are_native;
}

}  // namespace lamina::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lamina::ops::cpu {

HWY_EXPORT(outer_products);
HWY_EXPORT(native_pairs);

bool has_bf16_outer_products() {
#if HWY_ARCH_X86
  static const bool has_instruction = __builtin_cpu_supports("avx512bf16") != 0;
  return has_instruction && HWY_DYNAMIC_DISPATCH(native_pairs)();
#else
  return false;
#endif
}

int64_t scratch_bytes(const Bf16OuterProducts& args) {
  const int64_t pairs = (std::min(args.depth, chunk_depth) + 1) / 2;
  return 4 * pairs * (round_up_to_whole(args.rows, block_rows) + round_up_to_whole(args.columns, panel_columns));
}

void add_outer_products(const Bf16OuterProducts& args, char* scratch) {
  LAMINA_CHECK(has_bf16_outer_products(), "this processor multiplies no pairs of bf16");
  const auto run = HWY_DYNAMIC_DISPATCH(outer_products);
  for (int64_t first = 0; first < args.depth; first += chunk_depth) {
    Bf16OuterProducts chunk = args;
    chunk.a += first * args.a_leading;
    chunk.b += first * args.b_leading;
    chunk.depth = std::min(chunk_depth, args.depth - first);
    auto* a = reinterpret_cast<uint32_t*>(scratch);
    run(chunk, a, a + (chunk.depth + 1) / 2 * round_up_to_whole(args.rows, block_rows));
  }
}

}  // namespace lamina::ops::cpu
#endif
