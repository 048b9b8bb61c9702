// What OpenAI's completions endpoint answers with, from what the batch hands out.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/serve/completion_request.h"

namespace lamina::serve {

// One text that is returned. With log-probabilities a token's come with the first piece that has some of its text; of tokens that a stop
// text cut off there are none.
class Choice {
 public:
  // Both must outlive it.
  Choice(const CompletionRequest& request, const Prompt& prompt, const Tokenizer& tokenizer, size_t index);

  void add(const inference::TokenEvent& event);  // of its sample, or of the prompt
  bool has_ended() const { return finish_ != inference::Finish::no; }
  double mean_log_probability() const;  // per token that was drawn

  // What was not given before: {"text", "index", "logprobs", "finish_reason"}. null when there is nothing to say yet.
  nlohmann::ordered_json take();

 private:
  struct Score {
    std::string token;
    int64_t offset;                     // in characters, of the whole text
    nlohmann::ordered_json value, top;  // null for the first of a prompt
  };
  std::string name_of(int32_t token) const;
  void add_score(int32_t token, const inference::TokenEvent* event);
  nlohmann::ordered_json take_scores();

  const CompletionRequest& request_;
  const Tokenizer& tokenizer_;
  size_t index_;
  inference::Finish finish_ = inference::Finish::no;
  std::string text_;            // not given yet
  int64_t num_characters_ = 0;  // of all text, given or not
  bool is_finish_given_ = false;
  double log_probability_ = 0;
  int64_t num_tokens_ = 0;
  TextStream spelling_;        // of all tokens that were scored, without regard to stop texts
  int64_t num_spelt_ = 0;      // characters
  std::vector<Score> scores_;  // not given yet
};

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0;
  nlohmann::ordered_json to_json() const;
};

int64_t num_characters(std::string_view text);  // of valid UTF-8

}  // namespace lamina::serve
