// A tokenizer as files that other programs read: `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer loads
// without code, and the SentencePiece model or tiktoken file itself.
#pragma once

#include <map>
#include <string>

#include "data/tokenizer.h"

namespace lamina {

// Beside a tokenizer.json; without one under a name that nobody makes a tokenizer of by a guess, as transformers does of the first.
inline constexpr const char* sentencepiece_file = "tokenizer.model";
inline constexpr const char* sentencepiece_file_alone = "sentencepiece.model";
inline constexpr const char* tiktoken_file = "tiktoken.model";
inline constexpr const char* tiktoken_file_alone = "vocabulary.tiktoken";

struct TokenizerFiles {
  std::map<std::string, std::string> contents;  // by name
  std::string
      reason;  // why there is no tokenizer.json: that format has no tokenizer with the same tokens. Empty: there is one
};

// A text begins with the token that ends a document, as in training; the names of special tokens in a text are ordinary text. A
// tokenizer.json that was there already is written as it was: it decides what a text begins with.
// Error for a SentencePiece model that can't be read.
TokenizerFiles tokenizer_files(const Tokenizer& tokenizer);

}  // namespace lamina
