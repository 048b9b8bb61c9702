// A request of OpenAI's completions endpoint (POST /v1/completions), from its JSON. Source: OpenAI's API reference, "Create completion".
#pragma once

#include <cstdint>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "inference/generator.h"

namespace lamina::serve {

// What is answered instead, in OpenAI's form.
struct ApiError : std::exception {
  ApiError(int http_status, std::string text, std::string field = {}, std::string short_name = {})
      : status(http_status), message(std::move(text)), param(std::move(field)), code(std::move(short_name)) {}
  const char* what() const noexcept override { return message.c_str(); }
  // {"error": {"message", "type", "param", "code"}}
  nlohmann::ordered_json to_json() const;

  int status;
  std::string message, param, code;  // param: the field; both may be empty
};

struct RequestLimits {
  int64_t prompt_tokens = 8192;
  int64_t max_tokens = 4096;
  int64_t samples = 32;  // of one prompt
};

struct Prompt {
  std::string text;  // as echo gives it
  std::vector<int32_t> tokens;
};

struct CompletionRequest {
  std::string model;
  std::vector<Prompt> prompts;  // a text begins behind the token that ends a document; tokens are taken as they are
  int64_t max_tokens = 16;
  int n = 1, best_of = 1;  // of each prompt `best_of` samples are drawn and the likeliest n returned
  inference::Sampling sampling;
  std::vector<std::string> stop;
  std::optional<uint64_t> seed;
  std::optional<int64_t> logprobs;
  bool echo = false, stream = false, include_usage = false;

  // One per prompt, for the batch.
  std::vector<inference::Request> to_requests(uint64_t seed_to_use) const;
};

// Throws ApiError, which names the field: 400, or 404 when `model` is another than `served_model`. No field is ignored but `user`, which
// says something about the client only.
CompletionRequest parse_completion_request(const std::string& body, const std::string& served_model,
                                           const Tokenizer& tokenizer, const RequestLimits& limits);

}  // namespace lamina::serve
