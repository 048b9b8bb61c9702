#include "launch/serve/completion_request.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "configs/schema/nearest.h"
#include "data/utf8.h"

namespace lamina::serve {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

std::string shown(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return value.empty() ? "an empty list" : fmt::format("a list of {}", value.size());
  if (value.is_string()) return value.get_ref<const std::string&>().size() > 40 ? "a longer text" : value.dump();
  return value.dump();
}

[[noreturn]] void refuse(const std::string& field, const json& found, const std::string& expected) {
  throw ApiError(400, fmt::format("{}: found {}, expected {}", field, shown(found), expected), field);
}

// The body's object. A field that comes twice would leave one of its values unheard.
json parse_object(const std::string& body) {
  std::set<std::string> keys;
  std::string twice;
  const auto look = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth == 1 && event == json::parse_event_t::key && !keys.insert(parsed.get<std::string>()).second)
      twice = parsed.get<std::string>();
    return true;
  };
  json document;
  try {
    document = json::parse(body, look);
  } catch (const json::exception& failure) {
    // Its message quotes the text around the fault, which is no business of logs and terminals.
    const auto* at = dynamic_cast<const json::parse_error*>(&failure);
    throw ApiError(400, at ? fmt::format("the body is no JSON: fault at byte {}", at->byte)
                           : "the body is no JSON that can be read");
  }
  if (!document.is_object()) throw ApiError(400, "the body: found " + shown(document) + ", expected a JSON object");
  if (!twice.empty()) throw ApiError(400, twice + ": found twice, expected once", twice);
  return document;
}

// Fields by name. null stands for an absent one, as in OpenAI's reference.
class Fields {
 public:
  explicit Fields(json object, std::string prefix = {}) : object_(std::move(object)), prefix_(std::move(prefix)) {}

  const json* find(const char* name) {
    known_.emplace(name);
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  int64_t integer(const char* name, int64_t lowest, int64_t highest, int64_t otherwise) {
    const json* value = find(name);
    if (!value) return otherwise;
    // One above int64's range is unsigned.
    const bool fits =
        value->is_number_integer() && (!value->is_number_unsigned() || value->get<uint64_t>() <= INT64_MAX);
    if (!fits || value->get<int64_t>() < lowest || value->get<int64_t>() > highest)
      refuse(full(name), *value, fmt::format("a whole number from {} to {}", lowest, highest));
    return value->get<int64_t>();
  }
  double number(const char* name, double lowest, double highest, double otherwise) {
    const json* value = find(name);
    if (!value) return otherwise;
    const double found = value->is_number() ? value->get<double>() : NAN;
    if (!(found >= lowest && found <= highest))
      refuse(full(name), *value, fmt::format("a number from {} to {}", lowest, highest));
    return found;
  }
  bool boolean(const char* name) {
    const json* value = find(name);
    if (value && !value->is_boolean()) refuse(full(name), *value, "true or false");
    return value && value->get<bool>();
  }
  std::string string(const char* name) {
    const json* value = find(name);
    if (value && !value->is_string()) refuse(full(name), *value, "a text");
    return value ? value->get<std::string>() : std::string();
  }
  // What this server can't do: only the value that asks for nothing is taken.
  void refuse_unless(bool asks_for_nothing, const char* name, const std::string& expected) {
    if (!asks_for_nothing) refuse(full(name), object_.at(name), expected);
  }
  // Once all fields were asked for.
  void refuse_others() const {
    for (const auto& [name, value] : object_.items()) {
      if (known_.contains(name)) continue;
      const auto near = nearest_name(name, std::vector<std::string>(known_.begin(), known_.end()));
      throw ApiError(400,
                     fmt::format("{}: unknown field, {}", full(name),
                                 near ? "did you mean " + *near + "?"
                                      : fmt::format("expected one of {}", fmt::join(known_, ", "))),
                     full(name));
    }
  }

 private:
  std::string full(const std::string& name) const { return prefix_ + name; }

  json object_;
  std::string prefix_;
  std::set<std::string> known_;
};

Prompt prompt_of_text(const std::string& text, const Tokenizer& tokenizer) {
  Prompt prompt{text, {tokenizer.end_of_document()}};
  tokenizer.encode(text, prompt.tokens);
  return prompt;
}

Prompt prompt_of_tokens(const std::string& field, const json& list, const Tokenizer& tokenizer) {
  if (list.empty()) refuse(field, list, "at least one token");
  Prompt prompt;
  for (size_t i = 0; i < list.size(); ++i) {
    const json& token = list[i];
    if (!token.is_number_unsigned() || token.get<uint64_t>() >= static_cast<uint64_t>(tokenizer.vocab_size()))
      refuse(fmt::format("{}[{}]", field, i), token,
             fmt::format("a token, a whole number from 0 to {}", tokenizer.vocab_size() - 1));
    prompt.tokens.push_back(token.get<int32_t>());
  }
  int64_t replaced = 0;
  prompt.text = repair_utf8(tokenizer.decode(prompt.tokens), replaced);
  return prompt;
}

std::vector<Prompt> read_prompts(const json* value, const Tokenizer& tokenizer) {
  if (!value) return {prompt_of_text("", tokenizer)};
  if (value->is_string()) return {prompt_of_text(value->get<std::string>(), tokenizer)};
  constexpr const char* expected = "a text, a list of texts, a list of tokens or a list of lists of tokens";
  if (!value->is_array() || value->empty()) refuse("prompt", *value, expected);
  if (value->front().is_number()) return {prompt_of_tokens("prompt", *value, tokenizer)};
  std::vector<Prompt> prompts;
  for (size_t i = 0; i < value->size(); ++i) {
    const json& each = (*value)[i];
    const std::string field = fmt::format("prompt[{}]", i);
    if (each.type() != value->front().type() || !(each.is_string() || each.is_array())) refuse(field, each, expected);
    prompts.push_back(each.is_string() ? prompt_of_text(each.get<std::string>(), tokenizer)
                                       : prompt_of_tokens(field, each, tokenizer));
  }
  return prompts;
}

std::vector<std::string> read_stop(const json* value) {
  constexpr size_t most = 4;
  if (!value) return {};
  const json list = value->is_string() ? json::array({*value}) : *value;
  const auto is_text = [](const json& each) { return each.is_string() && !each.get_ref<const std::string&>().empty(); };
  if (!list.is_array() || list.size() > most || !std::all_of(list.begin(), list.end(), is_text))
    refuse("stop", *value, fmt::format("a text or a list of at most {} texts, none of them empty", most));
  return list.get<std::vector<std::string>>();
}

void read_samples(Fields& fields, const RequestLimits& limits, CompletionRequest& request) {
  request.n = static_cast<int>(fields.integer("n", 1, limits.samples, 1));
  request.best_of = static_cast<int>(fields.integer("best_of", 1, limits.samples, request.n));
  fields.refuse_unless(request.best_of >= request.n, "best_of", fmt::format("at least n, which is {}", request.n));
  fields.refuse_unless(!request.stream || request.best_of == request.n, "best_of",
                       "n with stream: the best are known at the end only");
}

void read_stream(Fields& fields, CompletionRequest& request) {
  request.stream = fields.boolean("stream");
  const json* options = fields.find("stream_options");
  if (!options) return;
  fields.refuse_unless(options->is_object(), "stream_options", "an object");
  fields.refuse_unless(request.stream, "stream_options", "stream: true beside it");
  Fields inner(*options, "stream_options.");
  request.include_usage = inner.boolean("include_usage");
  inner.refuse_unless(!inner.boolean("include_obfuscation"), "include_obfuscation", "false: nothing is padded here");
  inner.refuse_others();
}

// Only at the value at which they change nothing.
void refuse_what_is_not_here(Fields& fields) {
  fields.refuse_unless(fields.string("suffix").empty(), "suffix",
                       "none: the model goes on with texts and fills no gaps");
  for (const char* name : {"presence_penalty", "frequency_penalty"})
    fields.refuse_unless(fields.number(name, -2, 2, 0) == 0, name, "0: no penalties here");
  const json* bias = fields.find("logit_bias");
  fields.refuse_unless(!bias || (bias->is_object() && bias->empty()), "logit_bias", "none, or an empty object");
}

}  // namespace

ordered_json ApiError::to_json() const {
  const auto or_null = [](const std::string& text) { return text.empty() ? ordered_json() : ordered_json(text); };
  const char* type = status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
  return {{"error", {{"message", message}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
}

CompletionRequest parse_completion_request(const std::string& body, const std::string& served_model,
                                           const Tokenizer& tokenizer, const RequestLimits& limits) {
  Fields fields(parse_object(body));
  CompletionRequest request;
  request.model = fields.string("model");
  if (!fields.find("model")) throw ApiError(400, "model: missing, expected '" + served_model + "'", "model");
  if (request.model != served_model)
    throw ApiError(404, fmt::format("model: found {}, expected '{}'", shown(*fields.find("model")), served_model),
                   "model", "model_not_found");
  const json* prompts = fields.find("prompt");
  request.max_tokens = fields.integer("max_tokens", 0, limits.max_tokens, std::min<int64_t>(16, limits.max_tokens));
  request.sampling = {fields.number("temperature", 0, 2, 1), 0, fields.number("top_p", 0, 1, 1)};
  request.stop = read_stop(fields.find("stop"));
  request.echo = fields.boolean("echo");
  if (fields.find("seed")) request.seed = static_cast<uint64_t>(fields.integer("seed", INT64_MIN, INT64_MAX, 0));
  if (fields.find("logprobs")) request.logprobs = fields.integer("logprobs", 0, 5, 0);
  read_stream(fields, request);
  read_samples(fields, limits, request);
  refuse_what_is_not_here(fields);
  fields.string("user");
  fields.refuse_others();
  // What costs most comes last.
  request.prompts = read_prompts(prompts, tokenizer);
  for (size_t i = 0; i < request.prompts.size(); ++i) {
    const auto found = static_cast<int64_t>(request.prompts[i].tokens.size());
    const std::string field = request.prompts.size() == 1 ? "prompt" : fmt::format("prompt[{}]", i);
    if (found > limits.prompt_tokens)
      throw ApiError(400, fmt::format("{}: found {} tokens, expected at most {}", field, found, limits.prompt_tokens),
                     field, "context_length_exceeded");
  }
  return request;
}

std::vector<inference::Request> CompletionRequest::to_requests(uint64_t seed_to_use) const {
  std::vector<inference::Request> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    inference::Request& one = requests.emplace_back();
    one.tokens = prompts[i].tokens;
    one.num_samples = best_of;
    one.max_tokens = max_tokens;
    one.sampling = sampling;
    one.seed = seed_to_use;
    one.first_stream = i * static_cast<size_t>(best_of);
    one.stop = stop;
    if (logprobs || best_of > n) one.num_likeliest = logprobs.value_or(0);
    one.score_prompt = echo && logprobs;
  }
  return requests;
}

}  // namespace lamina::serve
