// Trains a SentencePiece model for `lamina prepare --tokenizer sentencepiece:FILE`.
//
// Lossless on UTF-8: no normalisation, no dummy prefix, spaces kept, and bytes as a fallback for what the vocabulary
// lacks (line breaks too). Digits are split. The result depends on the options and the text only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/text_input.h"

namespace lamina {

struct TokenizerTrainingOptions {
  std::string model_type = "bpe";  // or unigram
  int64_t vocab_size = 0;          // with 256 bytes and 3 control pieces
  std::string output;              // the model file
  std::vector<std::string> inputs;
  TextFormat format;
  int64_t max_sentences = 2'000'000;  // lines sampled from the inputs, held in memory; 0: all
  bool overwrite = false;
  bool show_progress = true;  // on stderr
};

struct TokenizerTrainingReport {
  int64_t vocab_size = 0;
  int64_t num_bytes = 0;  // of text read
  TextCounts text;
  double seconds = 0;
};

// The model file appears whole or not at all. Throws Error, also for a text too small for the vocabulary.
TokenizerTrainingReport train_tokenizer(const TokenizerTrainingOptions& options);

}  // namespace lamina
