#include "launch/serve/answer.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/base/log.h"

namespace lamina::serve {

using nlohmann::ordered_json;
using std::chrono::steady_clock;

RequestRecord& RequestRecord::current() {
  thread_local RequestRecord record;
  return record;
}

void RequestRecord::write(const std::string& what, int status) {
  const double seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
  std::string line = fmt::format("{} {} in {:.3f} s", what, status, seconds);
  if (usage) {
    const auto rate = static_cast<double>(usage->completion_tokens) / seconds;
    line += fmt::format(": {} + {} tokens, {:.1f} tokens/s", usage->prompt_tokens, usage->completion_tokens, rate);
  }
  log::info("{}{}", line, note.empty() ? "" : "; " + note);
  *this = {};
}

CompletionAnswer::CompletionAnswer(CompletionRequest request, const Tokenizer& tokenizer,
                                   std::unique_ptr<inference::Batcher::Ticket> ticket, const ClientSocket& client,
                                   const Origin& origin)
    : request_(std::move(request)), ticket_(std::move(ticket)), client_(client), origin_(origin) {
  for (const Prompt& prompt : request_.prompts) {
    usage_.prompt_tokens += static_cast<int64_t>(prompt.tokens.size());
    for (int i = 0; i < request_.best_of; ++i)
      choices_.push_back(std::make_unique<Choice>(request_, prompt, tokenizer, choices_.size()));
  }
}

bool CompletionAnswer::advance() {
  if (client_.has_hung_up()) return false;
  if (steady_clock::now() >= origin_.deadline)
    throw ApiError(504, "the request took longer than this server allows, its wait for a place included", {},
                   "timeout");
  std::vector<inference::TokenEvent> events;
  try {
    events = ticket_->take(std::chrono::milliseconds(100));
  } catch (const Error& failure) {
    throw ApiError(503, failure.what());
  }
  for (const inference::TokenEvent& event : events) {
    const auto first = static_cast<size_t>(event.request * request_.best_of);
    if (event.sample == inference::TokenEvent::of_prompt) {
      for (int i = 0; i < request_.best_of; ++i) choices_[first + static_cast<size_t>(i)]->add(event);
      continue;
    }
    usage_.completion_tokens += event.token >= 0;
    choices_[first + static_cast<size_t>(event.sample)]->add(event);
  }
  return true;
}

void CompletionAnswer::end_record(const std::string& note) {
  RequestRecord::current().usage = usage_;
  RequestRecord::current().note = note;
  ticket_.reset();
}

ordered_json CompletionAnswer::object(const ordered_json& choices) const {
  return {{"id", origin_.id},
          {"object", "text_completion"},
          {"created", origin_.created},
          {"model", request_.model},
          {"choices", choices}};
}

void CompletionAnswer::keep_best() {
  std::vector<std::unique_ptr<Choice>> best;
  for (auto first = choices_.begin(); first != choices_.end(); first += request_.best_of) {
    std::stable_sort(first, first + request_.best_of, [](const auto& a, const auto& b) {
      return a->mean_log_probability() > b->mean_log_probability();
    });
    std::move(first, first + request_.n, std::back_inserter(best));
  }
  choices_ = std::move(best);
}

std::optional<ordered_json> CompletionAnswer::whole() {
  try {
    while (!ticket_->has_ended()) {
      if (advance()) continue;
      end_record("the client hung up");
      return std::nullopt;
    }
  } catch (const ApiError& error) {
    end_record(error.message);
    throw;
  }
  if (request_.best_of > request_.n) keep_best();
  ordered_json choices = ordered_json::array();
  for (const auto& choice : choices_) {
    choices.push_back(choice->take());
    choices.back()["index"] = choices.size() - 1;
  }
  ordered_json result = object(choices);
  result["usage"] = usage_.to_json();
  end_record("");
  return result;
}

bool CompletionAnswer::stream_events(const std::function<bool(const std::string&)>& write) {
  const auto send = [&](ordered_json event) {
    if (request_.include_usage && !event.contains("usage")) event["usage"] = nullptr;
    return write("data: " + event.dump() + "\n\n");
  };
  for (;;) {
    for (const auto& choice : choices_)
      if (const ordered_json piece = choice->take(); !piece.is_null() && !send(object(ordered_json::array({piece}))))
        return false;
    if (ticket_->has_ended()) break;
    if (!advance()) return false;
  }
  ordered_json last = object(ordered_json::array());
  last["usage"] = usage_.to_json();
  return (!request_.include_usage || send(last)) && write("data: [DONE]\n\n");
}

bool CompletionAnswer::stream(const std::function<bool(const std::string&)>& write) {
  std::string note;
  bool reached = false;
  try {
    reached = stream_events(write);
    if (!reached) note = "the client hung up";
  } catch (const ApiError& error) {
    note = error.message;
    reached = write("data: " + error.to_json().dump() + "\n\n");
  }
  end_record(note);
  return reached;
}

}  // namespace lamina::serve
