#include "gemm.h"

#include <bit>
#include <cstring>
#include <vector>

#include "cuda_bf16.h"

namespace lamina_emulator {
namespace {

constexpr int tile_m = 16, tile_n = 4;
typedef float Vector __attribute__((vector_size(32)));

float load(const void* data, int64_t at, bool is_bf16) {
  if (is_bf16) return bf16_to_float(static_cast<const unsigned short*>(data)[at]);
  return static_cast<const float*>(data)[at];
}

float rounded_to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  return std::bit_cast<float>((bits + 0x1000u) & ~0x1fffu);
}

// A column-major matrix of `rows` x `columns` (after transposing), in panels of `width` of its rows or, for b, columns: the panel's
// elements of one index of the sum are next to each other, and missing ones are zero.
std::vector<float> packed(const void* data, int64_t stride_across, int64_t stride_along, int across, int along,
                          int width, const Gemm& gemm) {
  const int64_t panels = (across + width - 1) / width;
  std::vector<float> result(static_cast<size_t>(panels * width * along));
  for (int64_t i = 0; i < across; ++i) {
    float* const to = result.data() + i / width * width * along + i % width;
    for (int64_t p = 0; p < along; ++p) {
      const float x = load(data, i * stride_across + p * stride_along, gemm.bf16_in);
      to[p * width] = gemm.tf32 ? rounded_to_tf32(x) : x;
    }
  }
  return result;
}

__attribute__((always_inline)) inline void multiply_tile_body(const float* a, const float* b, int k, float* sums) {
  Vector total[tile_n][2] = {};
  for (int p = 0; p < k; ++p) {
    Vector low, high;
    std::memcpy(&low, a + p * tile_m, sizeof(Vector));
    std::memcpy(&high, a + p * tile_m + 8, sizeof(Vector));
    for (int j = 0; j < tile_n; ++j) {
      total[j][0] += low * b[p * tile_n + j];
      total[j][1] += high * b[p * tile_n + j];
    }
  }
  std::memcpy(sums, total, sizeof(total));
}
__attribute__((target("avx2,fma"))) void multiply_tile_avx2(const float* a, const float* b, int k, float* sums) {
  multiply_tile_body(a, b, k, sums);
}
void multiply_tile_portable(const float* a, const float* b, int k, float* sums) {
  multiply_tile_body(a, b, k, sums);
}

void store(const Gemm& gemm, int row, int column, float sum) {
  const int64_t at = row + column * gemm.ldc;
  float value = gemm.alpha * sum;
  if (gemm.beta != 0) value += gemm.beta * load(gemm.c, at, gemm.bf16_out);  // else c may hold anything
  if (gemm.bf16_out) {
    static_cast<unsigned short*>(gemm.c)[at] = bf16_from_float(value);
  } else {
    static_cast<float*>(gemm.c)[at] = value;
  }
}

}  // namespace

void multiply(const Gemm& gemm) {
  static const auto multiply_tile =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? multiply_tile_avx2 : multiply_tile_portable;
  const std::vector<float> a =
      packed(gemm.a, gemm.transpose_a ? gemm.lda : 1, gemm.transpose_a ? 1 : gemm.lda, gemm.m, gemm.k, tile_m, gemm);
  const std::vector<float> b =
      packed(gemm.b, gemm.transpose_b ? 1 : gemm.ldb, gemm.transpose_b ? gemm.ldb : 1, gemm.n, gemm.k, tile_n, gemm);
  for (int j = 0; j < gemm.n; j += tile_n)
    for (int i = 0; i < gemm.m; i += tile_m) {
      float sums[tile_n][tile_m];
      multiply_tile(a.data() + int64_t{i} * gemm.k, b.data() + int64_t{j} * gemm.k, gemm.k, &sums[0][0]);
      for (int column = j; column < j + tile_n && column < gemm.n; ++column)
        for (int row = i; row < i + tile_m && row < gemm.m; ++row) store(gemm, row, column, sums[column - j][row - i]);
    }
}

}  // namespace lamina_emulator
