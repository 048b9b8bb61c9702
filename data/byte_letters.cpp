#include "data/byte_letters.h"

#include <array>

namespace lamina {
namespace {

struct Letters {
  std::array<uint16_t, 256> code_of_byte{};
  std::array<int16_t, 512> byte_of_code{};

  Letters() {
    byte_of_code.fill(-1);
    uint16_t next = 256;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool is_printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
      code_of_byte[byte] = is_printable ? static_cast<uint16_t>(byte) : next++;
      byte_of_code[code_of_byte[byte]] = static_cast<int16_t>(byte);
    }
  }
};

const Letters& letters() {
  static const Letters all;
  return all;
}

}  // namespace

std::string letter_of_byte(unsigned char byte) {
  const unsigned code = letters().code_of_byte[byte];
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

std::optional<std::string> bytes_of_letters(std::string_view word) {
  std::string bytes;
  for (size_t at = 0; at < word.size();) {
    unsigned code = static_cast<unsigned char>(word[at++]);
    if (code >= 0x80) {
      if (code < 0xC2 || code > 0xC7 || at == word.size()) return std::nullopt;
      code = (code & 0x1F) << 6 | (static_cast<unsigned char>(word[at++]) & 0x3F);
    }
    const int byte = code < 512 ? letters().byte_of_code[code] : -1;
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace lamina
