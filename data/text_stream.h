// Text out of tokens as they are generated.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "data/tokenizer.h"
#include "data/utf8.h"

namespace lamina {

// A character may span tokens: it is passed on when it is whole. U+FFFD stands for bytes that are no UTF-8, as a model may produce
// them, and one that the last token leaves unfinished is not passed on.
class TextStream {
 public:
  // `previous`: the token before the first one, a document's end where there is no text yet. The tokenizer must live as long.
  TextStream(const Tokenizer& tokenizer, int32_t previous) : tokenizer_(tokenizer), previous_(previous) {}

  void feed(int32_t token, const std::function<void(std::string_view)>& out) {
    characters_.feed(tokenizer_.text_of(token, previous_), out);
    previous_ = token;
  }

 private:
  const Tokenizer& tokenizer_;
  int32_t previous_;
  Utf8Filter characters_{[](std::string_view, int64_t) {}};
};

}  // namespace lamina
