// What a warp's instructions do with everybody's operands.
#include <algorithm>
#include <bit>
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_runtime.h"
#include "lamina_emulated_kernel.h"

namespace lamina_emulator {
namespace {

template <class Visit>
void for_each(unsigned lanes, Visit visit) {
  for (; lanes != 0; lanes &= lanes - 1) visit(static_cast<unsigned>(std::countr_zero(lanes)));
}

template <class Operation>
void reduce(void* const* operands, unsigned arrived, uint32_t value, Operation operation) {
  for_each(arrived, [&](unsigned l) { value = operation(value, static_cast<const Vote*>(operands[l])->value); });
  for_each(arrived, [&](unsigned l) { static_cast<Vote*>(operands[l])->result = value; });
}

constexpr int rows = 16, columns = 8;

// d += a b, with a as [rows][depth], b as [depth][columns].
template <int depth>
void multiply(const float (&a)[rows][depth], const float (&b)[depth][columns], void* const* operands) {
  using Row = float __attribute__((vector_size(columns * sizeof(float))));
  Row sums[rows] = {}, along[depth];
  std::memcpy(along, b, sizeof(along));
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < depth; ++k) sums[i] += a[i][k] * along[k];
  for (int l = 0; l < 32; ++l) {
    float(&d)[4] = *static_cast<const MatrixProduct*>(operands[l])->d;
    const int group = l / 4, pair = l % 4;
    d[0] += sums[group][2 * pair];
    d[1] += sums[group][2 * pair + 1];
    d[2] += sums[group + 8][2 * pair];
    d[3] += sums[group + 8][2 * pair + 1];
  }
}

float low_bf16(uint32_t pair) {
  return bf16_to_float(static_cast<unsigned short>(pair));
}
float high_bf16(uint32_t pair) {
  return bf16_to_float(static_cast<unsigned short>(pair >> 16));
}
float from_tf32(uint32_t bits) {  // the hardware does not look at the lower bits
  return std::bit_cast<float>(bits & ~0x1fffu);
}

using Rows = uint16_t[32][8];  // row r of matrix m at 8 m + r

void gather_rows(void* const* operands, Rows& from) {
  for (int l = 0; l < 32; ++l) std::memcpy(from[l], static_cast<const MatrixLoad*>(operands[l])->row, 16);
}

}  // namespace

void combine_shuffled(void* const* operands, unsigned arrived) {
  uint64_t values[32];
  for_each(arrived, [&](unsigned l) { values[l] = static_cast<const Shuffled*>(operands[l])->value; });
  for_each(arrived, [&](unsigned l) {
    auto* const own = static_cast<Shuffled*>(operands[l]);
    const auto source = static_cast<unsigned>(own->source);
    // The value of a thread that does not take part is undefined.
    own->value = source < 32 && ((arrived >> source) & 1) != 0 ? values[source] : ~uint64_t{0};
  });
}

void combine_sync(void* const*, unsigned) {}
void combine_ballot(void* const* operands, unsigned arrived) {
  uint32_t ballot = 0;
  for_each(arrived, [&](unsigned l) { ballot |= static_cast<const Vote*>(operands[l])->value << l; });
  for_each(arrived, [&](unsigned l) { static_cast<Vote*>(operands[l])->result = ballot; });
}
void combine_sum(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, 0, [](uint32_t a, uint32_t b) { return a + b; });
}
void combine_and(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, ~0u, [](uint32_t a, uint32_t b) { return a & b; });
}
void combine_or(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, 0, [](uint32_t a, uint32_t b) { return a | b; });
}
void combine_xor(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, 0, [](uint32_t a, uint32_t b) { return a ^ b; });
}
void combine_max(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, 0, [](uint32_t a, uint32_t b) { return std::max(a, b); });
}
void combine_min(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, ~0u, [](uint32_t a, uint32_t b) { return std::min(a, b); });
}
void combine_max_signed(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, 0x80000000u, [](uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(std::max(static_cast<int32_t>(a), static_cast<int32_t>(b)));
  });
}
void combine_min_signed(void* const* operands, unsigned arrived) {
  reduce(operands, arrived, 0x7fffffffu, [](uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(std::min(static_cast<int32_t>(a), static_cast<int32_t>(b)));
  });
}

void combine_mma_bf16(void* const* operands, unsigned) {
  float a[rows][16], b[16][columns];
  for (int l = 0; l < 32; ++l) {
    const auto* const own = static_cast<const MatrixProduct*>(operands[l]);
    const int group = l / 4, pair = l % 4;
    for (int part = 0; part < 4; ++part) {
      const uint32_t both = (*own->a)[part];
      const int row = group + 8 * (part % 2), column = 2 * pair + 8 * (part / 2);
      a[row][column] = low_bf16(both);
      a[row][column + 1] = high_bf16(both);
    }
    for (int part = 0; part < 2; ++part) {
      const uint32_t both = (*own->b)[part];
      b[2 * pair + 8 * part][group] = low_bf16(both);
      b[2 * pair + 8 * part + 1][group] = high_bf16(both);
    }
  }
  multiply(a, b, operands);
}

void combine_mma_tf32(void* const* operands, unsigned) {
  float a[rows][8], b[8][columns];
  for (int l = 0; l < 32; ++l) {
    const auto* const own = static_cast<const MatrixProduct*>(operands[l]);
    const int group = l / 4, pair = l % 4;
    for (int part = 0; part < 4; ++part) a[group + 8 * (part % 2)][pair + 4 * (part / 2)] = from_tf32((*own->a)[part]);
    for (int part = 0; part < 2; ++part) b[pair + 4 * part][group] = from_tf32((*own->b)[part]);
  }
  multiply(a, b, operands);
}

void combine_ldmatrix(void* const* operands, unsigned) {
  Rows from;
  gather_rows(operands, from);
  for (int l = 0; l < 32; ++l)
    for (int m = 0; m < 4; ++m)
      std::memcpy(&(*static_cast<const MatrixLoad*>(operands[l])->r)[m], &from[8 * m + l / 4][2 * (l % 4)], 4);
}

void combine_ldmatrix_trans(void* const* operands, unsigned) {
  Rows from;
  gather_rows(operands, from);
  for (int l = 0; l < 32; ++l)
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = from[8 * m + 2 * (l % 4)][l / 4], high = from[8 * m + 2 * (l % 4) + 1][l / 4];
      (*static_cast<const MatrixLoad*>(operands[l])->r)[m] = low | (high << 16);
    }
}

}  // namespace lamina_emulator
