// The text of tokens that come one by one, in whole characters: a character that several tokens spell comes with the last of them.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "data/tokenizer.h"
#include "data/utf8.h"

namespace lamina {

class TextStream {
 public:
  // `before`: the tokens that the text goes on from; theirs is not given. The tokenizer must outlive the stream.
  explicit TextStream(const Tokenizer& tokenizer, std::span<const int32_t> before = {})
      : tokenizer_(tokenizer), previous_(before.empty() ? tokenizer.end_of_document() : before.back()) {}

  // What is certain now and was not before: UTF-8, with U+FFFD for bytes that are no character, as a model may produce them.
  std::string add(int32_t token) {
    std::string text;
    characters_.feed(tokenizer_.text_of(token, previous_), [&](std::string_view part) { text += part; });
    previous_ = token;
    return text;
  }
  // What was held back in case it became a character.
  std::string finish() {
    std::string text;
    characters_.finish([&](std::string_view part) { text += part; });
    return text;
  }

 private:
  const Tokenizer& tokenizer_;
  int32_t previous_;
  Utf8Filter characters_{[](std::string_view, int64_t) {}};
};

}  // namespace lamina
