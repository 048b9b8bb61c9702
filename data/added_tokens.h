// Tokens of a tokenizer.json that don't belong to its model: they are found in a text before the model sees it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/text_pattern.h"

namespace lamina {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // not next to a letter or digit
  bool lstrip = false;       // with the white space before it
  bool rstrip = false;       // and behind it
  bool normalized = false;   // looked for in the normalised text
  bool special = false;      // controls: in a text its name is text
};

// Finds such tokens as `tokenizers` does: the leftmost, of these the longest. Special ones are found and passed over, as with its
// encode_special_tokens.
class AddedTokenFinder {
 public:
  struct Part {
    int32_t id = -1;  // -1: text
    TextSpan span;
  };

  AddedTokenFinder() : AddedTokenFinder(std::vector<AddedToken>{}) {}
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  bool finds_nothing() const { return finds_nothing_; }                                        // in any text
  void split(std::string_view text, PatternScratch& scratch, std::vector<Part>& parts) const;  // appends

 private:
  struct Node {
    int32_t token = -1;  // that ends here
    std::vector<std::pair<unsigned char, uint32_t>> next;
  };
  bool match(std::string_view text, size_t from, size_t& begin, const AddedToken*& token) const;
  bool is_word(std::string_view character, PatternScratch& scratch) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<bool, 256> begins_{};
  bool finds_nothing_ = true;
  TextPattern word_, space_;
};

}  // namespace lamina
