// The type bfloat16 and what kernels do with it.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "cuda_runtime.h"

namespace lamina_emulator {
constexpr float bf16_to_float(unsigned short bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
constexpr unsigned short bf16_from_float(float x) {  // nearest, ties to even
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // the only NaN that the hardware makes
  return static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
}  // namespace lamina_emulator

struct alignas(2) __nv_bfloat16_raw {
  unsigned short x;
};
struct alignas(2) __nv_bfloat16 {
  unsigned short __x;

  __nv_bfloat16() = default;
  template <class T>
  requires std::is_arithmetic_v<T>
  constexpr __nv_bfloat16(T x) : __x(lamina_emulator::bf16_from_float(static_cast<float>(x))) {}
  constexpr __nv_bfloat16(const __nv_bfloat16_raw& raw) : __x(raw.x) {}
  constexpr operator float() const { return lamina_emulator::bf16_to_float(__x); }
  constexpr operator __nv_bfloat16_raw() const { return {__x}; }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;

  __nv_bfloat162() = default;
  constexpr __nv_bfloat162(const __nv_bfloat16& a, const __nv_bfloat16& b) : x(a), y(b) {}
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

constexpr float __bfloat162float(__nv_bfloat16 x) {
  return x;
}
constexpr __nv_bfloat16 __float2bfloat16(float x) {
  return x;
}
constexpr __nv_bfloat16 __float2bfloat16_rn(float x) {
  return x;
}
inline __nv_bfloat16 __float2bfloat16_rz(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return x != x ? __nv_bfloat16(x) : __nv_bfloat16(__nv_bfloat16_raw{static_cast<unsigned short>(bits >> 16)});
}
constexpr __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {low, high};
}
constexpr __nv_bfloat162 __float2bfloat162_rn(float x) {
  return {x, x};
}
constexpr __nv_bfloat162 __float22bfloat162_rn(float2 x) {
  return {x.x, x.y};
}
constexpr float2 __bfloat1622float2(__nv_bfloat162 x) {
  return {x.x, x.y};
}
constexpr float __low2float(__nv_bfloat162 x) {
  return x.x;
}
constexpr float __high2float(__nv_bfloat162 x) {
  return x.y;
}
constexpr __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) {
  return x.x;
}
constexpr __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) {
  return x.y;
}
constexpr __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
  return {low, high};
}
constexpr unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.__x;
}
constexpr __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  return __nv_bfloat16_raw{bits};
}

#define LAMINA_EMULATOR_BF16_OPERATOR(op)                                                  \
  constexpr __nv_bfloat16 operator op(const __nv_bfloat16& a, const __nv_bfloat16& b) {    \
    return __float2bfloat16(__bfloat162float(a) op __bfloat162float(b));                   \
  }                                                                                        \
  constexpr __nv_bfloat16& operator op##=(__nv_bfloat16& a, const __nv_bfloat16& b) {      \
    return a = a op b;                                                                     \
  }                                                                                        \
  constexpr __nv_bfloat162 operator op(const __nv_bfloat162& a, const __nv_bfloat162& b) { \
    return {a.x op b.x, a.y op b.y};                                                       \
  }
LAMINA_EMULATOR_BF16_OPERATOR(+)
LAMINA_EMULATOR_BF16_OPERATOR(-)
LAMINA_EMULATOR_BF16_OPERATOR(*)
LAMINA_EMULATOR_BF16_OPERATOR(/)
#undef LAMINA_EMULATOR_BF16_OPERATOR
constexpr __nv_bfloat16 operator-(const __nv_bfloat16& x) {
  return __nv_bfloat16_raw{static_cast<unsigned short>(x.__x ^ 0x8000u)};
}
#define LAMINA_EMULATOR_BF16_COMPARISON(op)                                    \
  constexpr bool operator op(const __nv_bfloat16& a, const __nv_bfloat16& b) { \
    return __bfloat162float(a) op __bfloat162float(b);                         \
  }
LAMINA_EMULATOR_BF16_COMPARISON(==)
LAMINA_EMULATOR_BF16_COMPARISON(!=)
LAMINA_EMULATOR_BF16_COMPARISON(<)
LAMINA_EMULATOR_BF16_COMPARISON(<=)
LAMINA_EMULATOR_BF16_COMPARISON(>)
LAMINA_EMULATOR_BF16_COMPARISON(>=)
#undef LAMINA_EMULATOR_BF16_COMPARISON
