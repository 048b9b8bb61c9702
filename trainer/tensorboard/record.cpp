#include "trainer/tensorboard/record.h"

#include <array>

namespace lamina::tensorboard {
namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));  // reflected polynomial
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> table = make_table();

// A CRC over bytes that contain a CRC is weak, so stored ones are rotated and shifted.
uint32_t masked(uint32_t crc) {
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

void append_little_endian(std::string& out, uint64_t value, int num_bytes) {
  for (int byte = 0; byte < num_bytes; ++byte) out += static_cast<char>(value >> (8 * byte) & 0xff);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xffu];
  return ~crc;
}

std::string framed(std::string_view record) {
  std::string out;
  out.reserve(record.size() + 16);
  append_little_endian(out, record.size(), 8);
  append_little_endian(out, masked(crc32c(out)), 4);
  out += record;
  append_little_endian(out, masked(crc32c(record)), 4);
  return out;
}

}  // namespace lamina::tensorboard
