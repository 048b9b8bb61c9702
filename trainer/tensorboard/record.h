// The framing of a TFRecord file: of each record its length (u64, little-endian), that length's masked CRC-32C (u32), the bytes,
// and their masked CRC-32C.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lamina::tensorboard {

uint32_t crc32c(std::string_view bytes);  // Castagnoli's polynomial (RFC 3720, appendix B.4)

std::string framed(std::string_view record);

}  // namespace lamina::tensorboard
