// GPT-2's spelling of bytes ("ByteLevel"): each byte as a printable character, so that words are text.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace lamina {

// The character for each byte: printable ones of Latin-1 as themselves, the others from U+0100 on.
std::string letter_of_byte(unsigned char byte);

// The bytes that a word of such letters stands for; nothing where a character is no letter of it.
std::optional<std::string> bytes_of_letters(std::string_view word);

}  // namespace lamina
