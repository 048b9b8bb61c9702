#include "trainer/export/export_values.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "core/base/error.h"
#include "core/base/hash.h"

namespace lamina {
namespace {

// Rounded to odd, so that a second rounding to fewer bits gives what one rounding would.
float round_to_odd(double value) {
  const float near = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(near) == value) return near;
  uint32_t bits = std::bit_cast<uint32_t>(near);
  if (std::abs(static_cast<double>(near)) > std::abs(value)) bits -= 1;  // towards zero
  return std::bit_cast<float>(bits | 1u);
}

template <class To, class From>
To converted(From value) {
  if constexpr (std::is_same_v<From, bf16>)
    return static_cast<To>(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, bf16> && std::is_same_v<From, double>)
    return bf16(round_to_odd(value));
  else
    return To(value);
}

template <class From, class To>
std::vector<char> convert(const std::vector<char>& values) {
  const size_t count = values.size() / sizeof(From);
  std::vector<char> out(count * sizeof(To));
  for (size_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, values.data() + i * sizeof(From), sizeof value);
    const To result = converted<To>(value);
    std::memcpy(out.data() + i * sizeof(To), &result, sizeof result);
  }
  return out;
}

template <class From>
std::vector<char> convert_from(const std::vector<char>& values, DType to) {
  switch (to) {
    case DType::bf16:
      return convert<From, bf16>(values);
    case DType::f32:
      return convert<From, float>(values);
    case DType::f64:
      return convert<From, double>(values);
    case DType::i32:
      break;
  }
  LAMINA_CHECK(false, "to {}", name_of(to));
  return {};
}

}  // namespace

void convert_values(std::vector<char>& values, DType from, DType to) {
  if (from == to) return;
  switch (from) {
    case DType::bf16:
      values = convert_from<bf16>(values, to);
      return;
    case DType::f32:
      values = convert_from<float>(values, to);
      return;
    case DType::f64:
      values = convert_from<double>(values, to);
      return;
    case DType::i32:
      break;
  }
  LAMINA_CHECK(false, "from {}", name_of(from));
}

void ModelHash::add(const SafetensorsEntry& entry, std::span<const char> bytes) {
  StreamingHash hash;
  const std::string head = fmt::format("{} {}\n", name_of(entry.dtype), entry.shape.to_string());
  hash.update(head.data(), head.size());
  hash.update(bytes.data(), bytes.size());
  LAMINA_CHECK(tensors_.emplace(entry.name, hash.digest()).second, "{} twice", entry.name);
}

uint64_t ModelHash::digest() const {
  std::string text;
  for (const auto& [name, hash] : tensors_) text += fmt::format("{} {}\n", name, hash_to_hex(hash));
  return hash64(text);
}

}  // namespace lamina
