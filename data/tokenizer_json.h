// The tokenizer that a Hugging Face tokenizer.json describes (the format of the `tokenizers` library, version 1.0): byte-pair encoding, of
// bytes (GPT-2, Llama 3, Qwen, DeepSeek) or of characters with bytes for what the vocabulary lacks (Llama 2, Mistral).
//
// Its tokens are those of `tokenizers` with encode_special_tokens: a special token's name in a text is text. What a post-processor puts in
// front of a text begins a document. Everything in the file that isn't understood is refused by name.
#pragma once

#include <string>
#include <string_view>

#include "data/bpe_tokenizer.h"

namespace lamina {

// `end_of_document`: the name of the special token that ends a document; `padding`: of the one for padding, or empty. Throws Error naming
// `origin` and the key. Without `model`, `name` and `hash`.
BpeTokenizerParts parse_tokenizer_json(std::string_view text, const std::string& end_of_document,
                                       const std::string& padding, const std::string& origin);

}  // namespace lamina
