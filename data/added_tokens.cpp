#include "data/added_tokens.h"

#include <algorithm>
#include <utility>

namespace lamina {
namespace {

// Of the character that ends before `at`.
size_t character_before(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

size_t character_end(std::string_view text, size_t at) {
  do ++at;
  while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)),
      nodes_(1),
      word_("\\w", PatternDialect::rust, "a letter"),
      space_("\\s", PatternDialect::rust, "white space") {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    if (content.empty()) continue;
    finds_nothing_ = finds_nothing_ && tokens_[i].special;
    begins_[static_cast<unsigned char>(content.front())] = true;
    uint32_t node = 0;
    for (const char c : content) {
      auto& next = nodes_[node].next;
      const auto byte = static_cast<unsigned char>(c);
      const auto found = std::find_if(next.begin(), next.end(), [&](const auto& entry) { return entry.first == byte; });
      if (found != next.end()) {
        node = found->second;
        continue;
      }
      const auto created = static_cast<uint32_t>(nodes_.size());
      next.emplace_back(byte, created);
      nodes_.emplace_back();
      node = created;
    }
    if (nodes_[node].token < 0) nodes_[node].token = static_cast<int32_t>(i);
  }
}

bool AddedTokenFinder::match(std::string_view text, size_t from, size_t& begin, const AddedToken*& token) const {
  for (begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<unsigned char>(text[begin])]) continue;
    token = nullptr;
    uint32_t node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto& next = nodes_[node].next;
      const auto byte = static_cast<unsigned char>(text[at]);
      const auto found = std::find_if(next.begin(), next.end(), [&](const auto& entry) { return entry.first == byte; });
      if (found == next.end()) break;
      node = found->second;
      if (nodes_[node].token >= 0) token = &tokens_[static_cast<size_t>(nodes_[node].token)];
    }
    if (token) return true;
  }
  return false;
}

bool AddedTokenFinder::is_word(std::string_view character, PatternScratch& scratch) const {
  TextSpan ignored;
  return word_.find(character, 0, scratch, ignored);
}

void AddedTokenFinder::split(std::string_view text, PatternScratch& scratch, std::vector<Part>& parts) const {
  const auto is_space = [&](size_t begin, size_t end) {
    TextSpan ignored;
    return space_.find(text.substr(begin, end - begin), 0, scratch, ignored);
  };
  size_t done = 0, from = 0, begin = 0;
  const AddedToken* token = nullptr;
  while (!finds_nothing_ && match(text, from, begin, token)) {
    size_t end = begin + token->content.size();
    from = end;
    if (token->special) continue;
    if (token->single_word) {
      const bool is_free =
          begin == 0 ||
          !is_word(text.substr(character_before(text, begin), begin - character_before(text, begin)), scratch);
      if (!is_free || (end < text.size() && is_word(text.substr(end, character_end(text, end) - end), scratch)))
        continue;
    }
    if (token->lstrip)
      while (begin > done && is_space(character_before(text, begin), begin)) begin = character_before(text, begin);
    if (token->rstrip)
      while (end < text.size() && is_space(end, character_end(text, end))) end = character_end(text, end);
    if (begin < done) continue;  // taken by the one before
    if (done < begin) parts.push_back({-1, {done, begin}});
    parts.push_back({token->id, {begin, end}});
    done = end;
  }
  if (done < text.size()) parts.push_back({-1, {done, text.size()}});
}

}  // namespace lamina
