#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "data/utf8.h"

namespace lamina {
namespace {

bool is_inside_character(std::string_view text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
}

// The patterns need whole characters. NUL is one, whatever utf8.h thinks of it in a text file.
std::string repaired(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t good = valid_utf8(text);
    out += text.substr(0, good);
    text.remove_prefix(good);
    if (text.empty()) break;
    const size_t fault = std::max<size_t>(utf8_fault(text), 1);
    if (text.front() == '\0')
      out += '\0';
    else
      out += "\xef\xbf\xbd";
    if (text.front() != '\0' && utf8_fault(text) == 0) break;  // half a character at the end
    text.remove_prefix(fault);
  }
  return out;
}

std::pair<std::vector<AddedToken>, std::vector<AddedToken>> by_kind(const std::vector<AddedToken>& all,
                                                                    const Normalizer& normalizer) {
  std::pair<std::vector<AddedToken>, std::vector<AddedToken>> out;
  PatternScratch scratch;
  for (AddedToken token : all) {
    if (token.normalized) normalizer.normalize(token.content, true, scratch);
    (token.normalized ? out.second : out.first).push_back(std::move(token));
  }
  return out;
}

}  // namespace

struct BpeTokenizer::Scratch {
  PatternScratch patterns;
  BpeScratch bpe;
  PreTokenizer::Words words;
  std::string normalized;
  std::vector<AddedTokenFinder::Part> parts, inner_parts;
};

// A thread's memory, given back at the end.
class BpeTokenizer::Lease {
 public:
  explicit Lease(const BpeTokenizer& owner) : owner_(owner) {
    const std::lock_guard lock(owner.mutex_);
    if (!owner.idle_.empty()) {
      scratch_ = std::move(owner.idle_.back());
      owner.idle_.pop_back();
    } else {
      scratch_ = std::make_unique<Scratch>();
    }
  }
  ~Lease() {
    const std::lock_guard lock(owner_.mutex_);
    owner_.idle_.push_back(std::move(scratch_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Scratch& operator*() const { return *scratch_; }

 private:
  const BpeTokenizer& owner_;
  std::unique_ptr<Scratch> scratch_;
};

BpeTokenizer::BpeTokenizer(BpeTokenizerParts parts) : parts_(std::move(parts)) {
  auto [raw, normalized] = by_kind(parts_.added, parts_.normalizer);
  raw_tokens_ = AddedTokenFinder(std::move(raw));
  normalized_tokens_ = AddedTokenFinder(std::move(normalized));
}

BpeTokenizer::~BpeTokenizer() = default;

void BpeTokenizer::encode(std::string_view text, std::vector<int32_t>& tokens) const {
  if (text.empty()) return;
  tokens.insert(tokens.end(), parts_.begin.begin(), parts_.begin.end());
  encode_from(text, Place::document_begin, tokens);
}

void BpeTokenizer::encode_more(std::string_view text, std::vector<int32_t>& tokens) const {
  encode_from(text, Place::goes_on, tokens);
}

void BpeTokenizer::encode_from(std::string_view text, Place place, std::vector<int32_t>& tokens) const {
  std::string whole;
  if (valid_utf8(text) < text.size()) text = whole = repaired(text);
  const Lease lease(*this);
  Scratch& scratch = *lease;
  if (raw_tokens_.finds_nothing()) return encode_section(text, place, scratch, tokens);
  scratch.parts.clear();
  raw_tokens_.split(text, scratch.patterns, scratch.parts);
  for (const AddedTokenFinder::Part& part : scratch.parts) {
    if (part.id >= 0)
      tokens.push_back(part.id);
    else
      encode_section(text.substr(part.span.begin, part.span.end - part.span.begin),
                     part.span.begin > 0 ? Place::section_begin : place, scratch, tokens);
  }
}

void BpeTokenizer::encode_section(std::string_view text, Place place, Scratch& scratch,
                                  std::vector<int32_t>& tokens) const {
  if (!parts_.normalizer.empty()) {
    scratch.normalized = text;
    parts_.normalizer.normalize(scratch.normalized, place != Place::goes_on, scratch.patterns);
    text = scratch.normalized;
  }
  scratch.inner_parts.clear();
  normalized_tokens_.split(text, scratch.patterns, scratch.inner_parts);
  for (const AddedTokenFinder::Part& part : scratch.inner_parts) {
    if (part.id >= 0) {
      tokens.push_back(part.id);
      continue;
    }
    scratch.words.text = text.substr(part.span.begin, part.span.end - part.span.begin);
    parts_.pre_tokenizer.split(scratch.words, part.span.begin > 0 ? Place::section_begin : place, scratch.patterns);
    const std::string_view words = scratch.words.text;
    for (const TextSpan& span : scratch.words.spans)
      parts_.bpe->encode(words.substr(span.begin, span.end - span.begin), scratch.bpe, tokens);
  }
}

std::string_view BpeTokenizer::text_of(int32_t token, int32_t previous) const {
  if (token < 0 || token >= vocab_size())
    throw Error("can't decode token id {}, expected 0 to {}", token, vocab_size() - 1);
  std::string_view text = parts_.texts[static_cast<size_t>(token)];
  if (!parts_.begins_with_space || !text.starts_with(' ')) return text;
  const int32_t before = parts_.begin.empty() ? parts_.end_of_document : parts_.begin.back();
  if (previous == before || previous == parts_.end_of_document) text.remove_prefix(1);
  return text;
}

// Whether the tokens around are the same with and without the cut.
bool BpeTokenizer::may_cut(std::string_view text, size_t at) const {
  constexpr size_t reach = 512;
  size_t begin = at > reach ? at - reach : 0, end = std::min(text.size(), at + reach);
  while (begin > 0 && is_inside_character(text, begin)) --begin;
  while (end > at && is_inside_character(text, end)) --end;
  std::vector<int32_t> whole, cut;
  encode_more(text.substr(begin, end - begin), whole);
  encode_more(text.substr(begin, at - begin), cut);
  encode_more(text.substr(at, end - at), cut);
  return whole == cut;
}

// No file says where its patterns begin a word whatever stands further on. So places that separate words nearly everywhere are tried: the
// end of a line before a letter, and a space between two letters. Where a text has neither, any place between two characters is.
size_t BpeTokenizer::safe_cut(std::string_view text) const {
  constexpr int max_trials = 64;
  constexpr size_t margin = 64;  // what follows isn't known here
  const auto is_letter = [](char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; };
  const size_t last = text.size() > 4 * margin ? text.size() - margin : text.size();
  const auto find = [&](const auto& is_candidate) -> size_t {
    int trials = 0;
    for (size_t at = last; at-- > 1 && trials < max_trials;)
      if (is_candidate(at)) {
        ++trials;
        if (may_cut(text, at)) return at;
      }
    return 0;
  };
  const auto line = [&](size_t at) { return text[at - 1] == '\n' && is_letter(text[at]); };
  const auto space = [&](size_t at) {
    return text[at] == ' ' && is_letter(text[at - 1]) && at + 1 < text.size() && is_letter(text[at + 1]);
  };
  if (const size_t at = find([&](size_t i) { return line(i) || space(i); })) return at;
  if (const size_t at = find([&](size_t i) { return !is_inside_character(text, i); })) return at;
  size_t at = last;
  while (at > 1 && is_inside_character(text, at)) --at;
  if (at < text.size() || valid_utf8(text) == text.size()) return std::max<size_t>(at, 1);
  const size_t good = valid_utf8(text);  // half a character at the end
  return good > 0 ? good : text.size();
}

}  // namespace lamina
