#include "evaluation/request.h"

#include <algorithm>
#include <string>

#include "core/base/error.h"

namespace lamina::evaluation {
namespace {

using namespace std::string_view_literals;

// str.isspace() of Python, in UTF-8.
constexpr std::string_view white_space[] = {
    "\t"sv,           "\n"sv,           "\v"sv,           "\f"sv,           "\r"sv,
    "\x1c"sv,         "\x1d"sv,         "\x1e"sv,         "\x1f"sv,         " "sv,
    "\xc2\x85"sv,     "\xc2\xa0"sv,     "\xe1\x9a\x80"sv, "\xe2\x80\x80"sv, "\xe2\x80\x81"sv,
    "\xe2\x80\x82"sv, "\xe2\x80\x83"sv, "\xe2\x80\x84"sv, "\xe2\x80\x85"sv, "\xe2\x80\x86"sv,
    "\xe2\x80\x87"sv, "\xe2\x80\x88"sv, "\xe2\x80\x89"sv, "\xe2\x80\x8a"sv, "\xe2\x80\xa8"sv,
    "\xe2\x80\xa9"sv, "\xe2\x80\xaf"sv, "\xe2\x81\x9f"sv, "\xe3\x80\x80"sv};

}  // namespace

size_t trailing_white_space(std::string_view text) {
  const size_t whole = text.size();
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view space : white_space) {
      if (!text.ends_with(space)) continue;
      text.remove_suffix(space.size());
      found = true;
      break;
    }
  }
  return whole - text.size();
}

Request continuation_request(const Tokenizer& tokenizer, std::string_view context, std::string_view continuation) {
  const std::string whole = std::string(context) + std::string(continuation);
  Request request;
  request.tokens = {tokenizer.end_of_document()};
  std::vector<int32_t> of_context = request.tokens;
  tokenizer.encode(context.substr(0, context.size() - trailing_white_space(context)), of_context);
  tokenizer.encode(whole, request.tokens);
  request.first = std::min(of_context.size(), request.tokens.size());
  return request;
}

std::vector<Request> pieces(std::span<const int32_t> tokens, int64_t length) {
  LAMINA_CHECK(length > 0, "pieces of {} tokens", length);
  std::vector<Request> requests;
  for (size_t begin = 0; begin + 1 < tokens.size(); begin += static_cast<size_t>(length)) {
    const auto piece = tokens.subspan(begin, std::min(tokens.size() - begin, static_cast<size_t>(length) + 1));
    requests.push_back({{piece.begin(), piece.end()}, 1});
  }
  return requests;
}

std::vector<Request> document_requests(const Tokenizer& tokenizer, std::string_view text, int64_t length) {
  std::vector<int32_t> tokens = {tokenizer.end_of_document()};
  tokenizer.encode(text, tokens);
  return pieces(tokens, length);
}

bool cut_beginning(Request& request, int64_t length) {
  LAMINA_CHECK(length > 0, "{} tokens", length);
  if (request.num_inputs() <= length) return false;
  const auto dropped = static_cast<size_t>(request.num_inputs() - length);
  request.tokens.erase(request.tokens.begin(), request.tokens.begin() + static_cast<int64_t>(dropped));
  request.first = request.first > dropped ? request.first - dropped : 1;
  return true;
}

int64_t num_scored_bytes(const Tokenizer& tokenizer, const Request& request) {
  int64_t bytes = 0;
  for (size_t i = request.first; i < request.tokens.size(); ++i)
    bytes += tokenizer.num_bytes(request.tokens[i], request.tokens[i - 1]);
  return bytes;
}

}  // namespace lamina::evaluation
