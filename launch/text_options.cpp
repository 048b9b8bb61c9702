#include "launch/text_options.h"

#include <fmt/format.h>

#include <string>

namespace lamina {

void add_text_options(CLI::App& command, TextFormat& format) {
  command
      .add_option("--format", format.format,
                  "What the inputs are: auto (their content decides), text, jsonl or json (an array)")
      ->check(CLI::IsMember({"auto", "text", "jsonl", "json"}))
      ->capture_default_str();
  command.add_option("--text-key", format.text_key, "Key of the text in JSON records; a.b is the key b within a")
      ->capture_default_str();
  const auto choose = [&format](const std::string& what) { format.replace_invalid_utf8 = what == "replace"; };
  command
      .add_option_function<std::string>(
          "--invalid-utf8", choose, "Bytes that are not UTF-8, and NUL: refuse, or replace (U+FFFD; they are counted)")
      ->check(CLI::IsMember({"refuse", "replace"}))
      ->default_str("refuse");
  command.add_flag("--skip-bad-records", format.skip_bad_records,
                   "Pass over JSON records without a text, and count them");
}

void add_tokenizer_options(CLI::App& command, TokenizerOptions& options) {
  command.add_option("--end-of-document", options.end_of_document,
                     "huggingface, tiktoken: the special token that ends a document; default: eos_token of the "
                     "tokenizer_config.json next to the file");
  command.add_option("--pattern", options.pattern,
                     "tiktoken: the regular expression that cuts a text into words, or cl100k, o200k or kimi; default: "
                     "pattern of the tokenizer_config.json");
  command.add_option("--special-tokens", options.special_tokens,
                     "tiktoken: NAME=ID, as many as there are; default: added_tokens_decoder of the "
                     "tokenizer_config.json, or those that go with the pattern's name");
}

void print_text_counts(const TextCounts& counts) {
  if (counts.num_replaced > 0)
    fmt::print("replaced by U+FFFD: {} places that were not UTF-8, or NUL\n", counts.num_replaced);
  if (counts.num_skipped > 0)
    fmt::print("skipped: {} bad records, the first {}\n", counts.num_skipped, counts.first_skipped);
}

}  // namespace lamina
