// The files of tokenizers that came from other programs' files (data/foreign_tokenizer.h).
#pragma once

#include "trainer/export/export_tokenizer.h"

namespace lamina {

// tokenizer.json as it was, and its tokenizer_config.json with what Lamina knows better: the token that ends a document, and that names of
// special tokens in a text are text.
TokenizerFiles files_of_huggingface(const Tokenizer& tokenizer);

// The tiktoken file as it was, its pattern and special tokens in tokenizer_config.json, and a tokenizer.json with the same tokens; none where
// Oniguruma would read the pattern otherwise.
TokenizerFiles files_of_tiktoken(const Tokenizer& tokenizer);

}  // namespace lamina
