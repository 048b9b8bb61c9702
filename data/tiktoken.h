// The tokenizer of a tiktoken file: a line per token, its bytes in base64 and its rank, which is its id. The file has neither the pattern
// that cuts a text into words nor the special tokens; both come from elsewhere.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe_tokenizer.h"

namespace lamina {

using SpecialTokens = std::map<std::string, int32_t>;

struct TiktokenRules {
  std::string pattern;  // for Rust's fancy-regex, as tiktoken has it
  SpecialTokens special_tokens;
  std::string end_of_document;  // one of them
};

// What goes with a published file: cl100k (GPT-4), o200k (GPT-4o), kimi (Kimi K2; its special tokens follow the file's, with the names
// that the model's tokenizer_config.json gives them). Nothing for any other name.
struct TiktokenPreset {
  std::string name, pattern;
  SpecialTokens special_tokens;
  int32_t num_reserved = 0;  // special tokens behind the file's own, <|reserved_token_ID|> where nothing names them
  std::string end_of_document;
};
std::optional<TiktokenPreset> tiktoken_preset(std::string_view name);

// The file's tokens by id. Throws Error naming the line of `origin` that is wrong.
std::vector<std::string> parse_tiktoken(std::string_view file, const std::string& origin);

// Without `model`, `name` and `hash`. Throws Error naming `origin`.
BpeTokenizerParts tiktoken_parts(std::string_view file, const TiktokenRules& rules, const std::string& origin);

// The merges that make the same tokens with whole words first: for each token the two that it is made of last.
std::vector<BpeMerge> tiktoken_merges(const std::vector<std::string>& tokens);

}  // namespace lamina
