// What is text and what isn't: UTF-8 as in Unicode's chapter 3, without NUL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace lamina {

// The length of the longest beginning of `text` that is whole characters of valid UTF-8, none of them NUL.
size_t valid_utf8(std::string_view text);

// For a text that begins with a fault: how many bytes one U+FFFD stands for ("maximal subpart", as in Python and browsers). 0: the
// text is the beginning of a character that may go on.
size_t utf8_fault(std::string_view text);

// "byte 0xE9", "a NUL byte" or "half a character": what `text` begins with.
std::string describe_utf8_fault(std::string_view text);

// A text in blocks of any size, with each fault replaced by U+FFFD.
class Utf8Filter {
 public:
  // What a fault leads to before it is replaced: the text from there on, and its offset. It may throw.
  using FaultHandler = std::function<void(std::string_view, int64_t)>;
  using Output = std::function<void(std::string_view)>;

  explicit Utf8Filter(FaultHandler on_fault) : on_fault_(std::move(on_fault)) {}

  void feed(std::string_view block, const Output& out);  // passes on what is whole; up to three bytes are held back
  void finish(const Output& out);

 private:
  void replace(std::string_view text, const Output& out);

  FaultHandler on_fault_;
  std::string held_;
  int64_t offset_ = 0;
};

std::string repair_utf8(std::string_view text, int64_t& num_replaced);  // adds to the count

}  // namespace lamina
