// Element types. Every kernel accumulates in accumulation_dtype(): float for bf16 and f32, double for f64.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace lamina {

enum class DType : uint8_t { bf16, f32, f64, i32 };

// Brain float: the upper half of an IEEE binary32. Conversions round to nearest, ties to even; NaN stays NaN.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  explicit bf16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = static_cast<uint16_t>((u >> 16) | 0x40u);
    } else {
      bits = static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  explicit operator double() const { return static_cast<double>(static_cast<float>(*this)); }
};
static_assert(sizeof(bf16) == 2);

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 2;
    case DType::f32:
      return 4;
    case DType::f64:
      return 8;
    case DType::i32:
      return 4;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return "bf16";
    case DType::f32:
      return "fp32";
    case DType::f64:
      return "fp64";
    case DType::i32:
      return "int32";
  }
  return "?";
}

// The dtype of statistics, softmax, sums and gradients of parameters for a compute dtype.
constexpr DType accumulation_dtype(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

template <class T>
struct dtype_of;
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::i32;
};

// The accumulation type as a C++ type: acc_t<bf16> is float, acc_t<double> is double.
template <class T>
struct accumulation {
  using type = float;
};
template <>
struct accumulation<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulation<T>::type;

}  // namespace lamina
