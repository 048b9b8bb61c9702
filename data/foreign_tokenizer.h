// Tokenizers in the files of other programs: Hugging Face's tokenizer.json and tiktoken's files, with the tokenizer_config.json that lies
// next to them. A token file stores one as a line of JSON with what the file itself doesn't say, followed by the file unchanged.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/tiktoken.h"
#include "data/tokenizer.h"

namespace lamina {

inline constexpr const char* huggingface_name = "huggingface";
inline constexpr const char* tiktoken_name = "tiktoken";

// What a token file keeps. A folder stands for the tokenizer.json or tiktoken.model in it. The token that ends documents is that of the
// options, or eos_token of tokenizer_config.json, or the only special token with a usual name for it. tiktoken's pattern and special tokens
// are the options', or `pattern` and added_tokens_decoder of tokenizer_config.json. Throws Error where one is not to be found.
std::string huggingface_model(const std::string& path, const TokenizerOptions& options);
std::string tiktoken_model(const std::string& path, const TokenizerOptions& options);

struct ForeignModel {
  std::string end_of_document, padding;
  TiktokenRules rules;        // of tiktoken
  std::string configuration;  // tokenizer_config.json as JSON; empty: there was none
  std::string_view file;      // within the text that was read
};
ForeignModel read_foreign_model(std::string_view model, const std::string& origin);

std::unique_ptr<Tokenizer> make_foreign_tokenizer(const std::string& name, const std::string& model,
                                                  const std::string& origin);

}  // namespace lamina
