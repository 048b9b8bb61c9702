// The options of commands that read text.
#pragma once

#include <CLI/CLI.hpp>

#include "data/text_input.h"
#include "data/tokenizer.h"

namespace lamina {

// --format, --text-key, --invalid-utf8 and --skip-bad-records. `format` must live as long as the command.
void add_text_options(CLI::App& command, TextFormat& format);

// --end-of-document, --pattern and --special-tokens. `options` must live as long as the command.
void add_tokenizer_options(CLI::App& command, TokenizerOptions& options);

// What was replaced and skipped, a line each on standard output; nothing where nothing was.
void print_text_counts(const TextCounts& counts);

// For the help of options and inputs.
inline constexpr const char* tokenizer_help =
    "bytes, sentencepiece:FILE, huggingface:FILE (a tokenizer.json, or its folder) or tiktoken:FILE";
inline constexpr const char* text_inputs_help =
    "Text or JSON records (one a line, or an array), as they are or compressed (gzip, Zstandard, xz, bzip2); - is "
    "standard input";

}  // namespace lamina
