// What is asked of a model: the log-probability of some tokens, given those before them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"

namespace lamina::evaluation {

struct Request {
  std::vector<int32_t> tokens;  // the context, at least one token; then, at least one, those that are scored
  size_t first = 1;             // of the scored ones

  int64_t num_inputs() const { return static_cast<int64_t>(tokens.size()) - 1; }  // the last token is a target only
};

// The tokens of `continuation` behind `context`, as EleutherAI's lm-eval cuts them (TemplateLM._encode_pair): white space at the context's
// end moves to the continuation, both together are encoded, and what comes after as many tokens as the context has alone is scored.
// A text begins behind the token that ends a document, as in training. No scored token is possible, where the two together have no
// more tokens than the context: `first` is then the number of tokens.
Request continuation_request(const Tokenizer& tokenizer, std::string_view context, std::string_view continuation);

// Every token but the first, scored once: in pieces of at most `length` inputs, each of which begins with the last token of the one before.
std::vector<Request> pieces(std::span<const int32_t> tokens, int64_t length);

// All tokens of a document, behind the token that ends the one before, in such pieces.
std::vector<Request> document_requests(const Tokenizer& tokenizer, std::string_view text, int64_t length);

// Inputs beyond `length` are dropped from the beginning, as lm-eval does; of what is scored too, but its last `length` tokens. True if
// any was.
bool cut_beginning(Request& request, int64_t length);

// Bytes of text that the scored tokens stand for.
int64_t num_scored_bytes(const Tokenizer& tokenizer, const Request& request);

// Bytes at the end that are white space, as Python's str.rstrip() takes it.
size_t trailing_white_space(std::string_view text);

}  // namespace lamina::evaluation
