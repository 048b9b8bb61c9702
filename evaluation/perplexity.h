// How well a model predicts a text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/text_input.h"
#include "evaluation/request.h"
#include "evaluation/score.h"

namespace lamina::evaluation {

struct Perplexity {
  int64_t num_tokens = 0;
  int64_t num_bytes = 0;  // of text
  double loss = 0;        // mean per token, nats
  double perplexity = 0;
  double bits_per_byte = 0;  // over the bytes of text that the tokens stand for
};
Perplexity perplexity_of(double sum_of_losses, int64_t num_tokens, int64_t num_bytes);

struct Text {
  std::string path;
  std::vector<Request> requests;
  int64_t num_tokens = 0, num_bytes = 0;  // scored
};

// The documents of a file, or of standard input ("-"). Error where they have no text.
std::vector<std::string> read_text(const std::string& path, const TextFormat& format);

// Every token of the documents' text is scored, with at most `length` tokens before it in view; documents don't see each other.
// The tokens that end documents are not scored.
Text make_text(const std::string& path, const std::vector<std::string>& documents, const Tokenizer& tokenizer,
               int64_t length);

// Collective. Absent when a stop was agreed on.
std::optional<Perplexity> evaluate_text(const Text& text, const Model& model);

}  // namespace lamina::evaluation
