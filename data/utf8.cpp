#include "data/utf8.h"

#include <fmt/format.h>

#include <cstring>

namespace lamina {

namespace {

constexpr std::string_view replacement = "\xef\xbf\xbd";  // U+FFFD

unsigned byte_at(std::string_view text, size_t at) {
  return static_cast<unsigned char>(text[at]);
}

struct Character {
  size_t length;  // of the bytes that belong together
  enum { whole, faulty, open } state;
};

// The first one of a text that isn't empty.
Character first_character(std::string_view text) {
  const unsigned lead = byte_at(text, 0);
  if (lead == 0) return {1, Character::faulty};
  if (lead < 0x80) return {1, Character::whole};
  if (lead < 0xC2 || lead > 0xF4) return {1, Character::faulty};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes longer spellings than needed, surrogates, and what lies behind U+10FFFF.
  unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {i, Character::open};
    if (byte_at(text, i) < low || byte_at(text, i) > high) return {i, Character::faulty};
    low = 0x80;
    high = 0xBF;
  }
  return {length, Character::whole};
}

// Eight bytes between 0x01 and 0x7F.
bool is_plain(uint64_t word) {
  constexpr uint64_t ones = 0x0101010101010101, tops = 0x8080808080808080;
  return (word & tops) == 0 && ((word - ones) & tops) == 0;
}

}  // namespace

size_t valid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    for (uint64_t word; at + sizeof word <= text.size(); at += sizeof word) {
      std::memcpy(&word, text.data() + at, sizeof word);
      if (!is_plain(word)) break;
    }
    // Up to here plain; the next few characters one by one, then a look at the words again.
    for (const size_t end = at + 8; at < text.size() && at < end;) {
      const Character character = first_character(text.substr(at));
      if (character.state != Character::whole) return at;
      at += character.length;
    }
  }
  return at;
}

size_t utf8_fault(std::string_view text) {
  const Character character = first_character(text);
  return character.state == Character::open ? 0 : character.length;
}

std::string describe_utf8_fault(std::string_view text) {
  if (text.front() == '\0') return "a NUL byte";
  if (utf8_fault(text) == 0) return "half a character";
  return fmt::format("byte 0x{:02X}", byte_at(text, 0));
}

void Utf8Filter::feed(std::string_view block, const Output& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = std::exchange(held_, {}).append(block);
    block = joined;
  }
  while (!block.empty()) {
    const size_t good = valid_utf8(block);
    if (good > 0) out(block.substr(0, good));
    offset_ += static_cast<int64_t>(good);
    block.remove_prefix(good);
    if (block.empty()) return;
    const size_t fault = utf8_fault(block);
    if (fault == 0) {
      held_ = block;
      return;
    }
    replace(block, out);
    offset_ += static_cast<int64_t>(fault);
    block.remove_prefix(fault);
  }
}

void Utf8Filter::finish(const Output& out) {
  if (!held_.empty()) replace(held_, out);
  held_.clear();
}

void Utf8Filter::replace(std::string_view text, const Output& out) {
  on_fault_(text, offset_);
  out(replacement);
}

std::string repair_utf8(std::string_view text, int64_t& num_replaced) {
  std::string result;
  const auto out = [&](std::string_view part) { result += part; };
  Utf8Filter filter([&](std::string_view, int64_t) { ++num_replaced; });
  filter.feed(text, out);
  filter.finish(out);
  return result;
}

}  // namespace lamina
