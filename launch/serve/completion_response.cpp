#include "launch/serve/completion_response.h"

#include <algorithm>

#include "data/utf8.h"

namespace lamina::serve {

using inference::Finish;
using nlohmann::ordered_json;

int64_t num_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

Choice::Choice(const CompletionRequest& request, const Prompt& prompt, const Tokenizer& tokenizer, size_t index)
    : request_(request),
      tokenizer_(tokenizer),
      index_(index),
      spelling_(tokenizer, request.echo ? std::span<const int32_t>{} : std::span<const int32_t>(prompt.tokens)) {
  if (!request.echo) return;
  text_ = prompt.text;
  num_characters_ = num_characters(text_);
  if (request.logprobs) add_score(prompt.tokens.front(), nullptr);
}

// A token may spell a part of a character. Those that do are told by their bytes, as OpenAI does.
std::string Choice::name_of(int32_t token) const {
  const std::string_view text = tokenizer_.text_of(token, -1);
  if (valid_utf8(text) == text.size()) return std::string(text);
  std::string name = "bytes:";
  for (const char c : text) name += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return name;
}

void Choice::add_score(int32_t token, const inference::TokenEvent* event) {
  Score score{name_of(token), num_spelt_, {}, {}};
  num_spelt_ += num_characters(spelling_.add(token));
  if (event) {
    score.value = event->log_probability;
    score.top = ordered_json::object();
    // Of two tokens of the same text the likelier one is told.
    for (const auto& [likely, log_probability] : event->likeliest) score.top.emplace(name_of(likely), log_probability);
    score.top.emplace(score.token, event->log_probability);
  }
  scores_.push_back(std::move(score));
}

void Choice::add(const inference::TokenEvent& event) {
  if (request_.logprobs && event.token >= 0) add_score(event.token, &event);
  if (event.sample == inference::TokenEvent::of_prompt) return;
  text_ += event.text;
  num_characters_ += num_characters(event.text);
  log_probability_ += event.log_probability;
  num_tokens_ += event.token >= 0;
  finish_ = event.finish;
}

double Choice::mean_log_probability() const {
  return num_tokens_ == 0 ? 0 : log_probability_ / static_cast<double>(num_tokens_);
}

ordered_json Choice::take_scores() {
  const bool all = has_ended() && finish_ != Finish::stop_text;
  ordered_json tokens = ordered_json::array(), values = tokens, tops = tokens, offsets = tokens;
  auto score = scores_.begin();
  for (; score != scores_.end() && (all || score->offset < num_characters_); ++score) {
    tokens.push_back(score->token);
    values.push_back(score->value);
    tops.push_back(score->top);
    offsets.push_back(score->offset);
  }
  scores_.erase(scores_.begin(), score);
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

ordered_json Choice::take() {
  ordered_json scores;
  if (request_.logprobs) scores = take_scores();
  const bool ends = has_ended() && !is_finish_given_;
  if (text_.empty() && !ends && (scores.is_null() || scores["tokens"].empty())) return nullptr;
  is_finish_given_ = has_ended();
  ordered_json reason;
  if (ends) reason = finish_ == Finish::length ? "length" : "stop";
  return {{"text", std::exchange(text_, {})}, {"index", index_}, {"logprobs", scores}, {"finish_reason", reason}};
}

ordered_json Usage::to_json() const {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt_tokens + completion_tokens}};
}

}  // namespace lamina::serve
