#include "data/text_steps.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <type_traits>
#include <utility>

#include "core/base/error.h"

namespace lamina {
namespace {

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <class... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;

// No character below U+0300 changes under NFC, and no ASCII ever.
bool is_normalized_already(std::string_view text, const UnicodeNormalization& how) {
  const unsigned char limit = how.composes && !how.is_compatible ? 0xCC : 0x80;
  return std::all_of(text.begin(), text.end(), [&](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < limit;
  });
}

void normalize_unicode(std::string& text, const UnicodeNormalization& how) {
  if (is_normalized_already(text, how)) return;
  int options = UTF8PROC_STABLE | (how.composes ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
  if (how.is_compatible) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &result, static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  if (size < 0) throw Error("{} bytes of text can't be normalised: {}", text.size(), utf8proc_errmsg(size));
  text.assign(reinterpret_cast<const char*>(result), static_cast<size_t>(size));
}

void replace(std::string& text, const ReplaceText& step, PatternScratch& scratch) {
  std::string out;
  size_t done = 0;
  TextSpan match;
  for (size_t from = 0; from < text.size() && step.pattern.find(text, from, scratch, match);) {
    out.append(text, done, match.begin - done).append(step.by);
    done = match.end;
    from = match.end;
    if (match.begin == match.end) ++from;
    while (from < text.size() && (static_cast<unsigned char>(text[from]) & 0xC0) == 0x80) ++from;
  }
  if (done == 0 && out.empty()) return;
  text = out.append(text, done);
}

// The matches within `span` and what is between them, as `tokenizers` joins them.
void split_span(std::string_view text, TextSpan span, const SplitText& step, PatternScratch& scratch,
                std::vector<TextSpan>& out) {
  const std::string_view part = text.substr(span.begin, span.end - span.begin);
  const size_t first = out.size();
  bool previous = false, has_previous = false, opens = false;
  const auto add = [&](size_t begin, size_t end, bool is_match) {
    if (begin == end) return;
    is_match = is_match != step.inverts;
    const TextSpan found{span.begin + begin, span.begin + end};
    bool joins = false;
    switch (step.behavior) {
      case SplitBehavior::removed:
        if (is_match) return;
        break;
      case SplitBehavior::isolated:
        break;
      case SplitBehavior::contiguous:
        joins = has_previous && previous == is_match;
        break;
      case SplitBehavior::merged_with_previous:
        joins = is_match && has_previous && !previous;
        break;
      case SplitBehavior::merged_with_next:  // a match opens a word that the next text joins
        joins = opens && !is_match;
        opens = is_match;
        break;
    }
    if (joins && out.size() > first)
      out.back().end = found.end;
    else
      out.push_back(found);
    previous = is_match;
    has_previous = true;
  };
  size_t done = 0;
  TextSpan match;
  for (size_t from = 0; from < part.size() && step.pattern.find(part, from, scratch, match);) {
    add(done, match.begin, false);
    add(match.begin, match.end, true);
    done = from = match.end;
    if (match.begin != match.end) continue;
    done = match.begin;
    for (++from; from < part.size() && (static_cast<unsigned char>(part[from]) & 0xC0) == 0x80;) ++from;
  }
  add(done, part.size(), false);
}

void split_all(PreTokenizer::Words& words, const SplitText& step, PatternScratch& scratch) {
  words.next.clear();
  for (const TextSpan& span : words.spans) split_span(words.text, span, step, scratch, words.next);
  words.spans.swap(words.next);
}

// Builds the text anew, word by word.
template <class Change>
void rewrite(PreTokenizer::Words& words, const Change& change) {
  words.next.clear();
  words.next_text.clear();
  for (size_t i = 0; i < words.spans.size(); ++i) {
    const TextSpan& span = words.spans[i];
    const size_t begin = words.next_text.size();
    change(i, std::string_view(words.text).substr(span.begin, span.end - span.begin), words.next_text);
    words.next.push_back({begin, words.next_text.size()});
  }
  words.spans.swap(words.next);
  words.text.swap(words.next_text);
}

void apply_metaspace(PreTokenizer::Words& words, const Metaspace& step, PreTokenizer::Place place) {
  using Place = PreTokenizer::Place;
  rewrite(words, [&](size_t i, std::string_view word, std::string& out) {
    const bool may_prefix = step.prefix == Metaspace::Prefix::always  ? i > 0 || place != Place::goes_on
                            : step.prefix == Metaspace::Prefix::first ? i == 0 && place == Place::document_begin
                                                                      : false;
    if (may_prefix && !word.starts_with(' ') && !word.starts_with(step.replacement)) out += step.replacement;
    for (const char c : word)
      if (c == ' ')
        out += step.replacement;
      else
        out += c;
  });
  if (!step.splits) return;
  words.next.clear();
  const std::string_view text = words.text;
  for (const TextSpan& span : words.spans) {
    size_t begin = span.begin;
    const std::string_view part = text.substr(0, span.end);
    for (size_t at; (at = part.find(step.replacement, begin + 1)) != std::string_view::npos; begin = at)
      words.next.push_back({begin, at});
    if (begin < span.end) words.next.push_back({begin, span.end});
  }
  words.spans.swap(words.next);
}

}  // namespace

void Normalizer::normalize(std::string& text, bool prepends, PatternScratch& scratch) const {
  for (const NormalizerStep& step : steps_)
    std::visit(Overloaded{[&](const UnicodeNormalization& how) { normalize_unicode(text, how); },
                          [&](const PrependText& front) {
                            if (prepends && !text.empty()) text.insert(0, front.text);
                          },
                          [&](const ReplaceText& what) { replace(text, what, scratch); }},
               step);
}

bool Normalizer::prepends() const {
  return std::any_of(steps_.begin(), steps_.end(),
                     [](const auto& step) { return std::holds_alternative<PrependText>(step); });
}

void PreTokenizer::split(Words& words, Place place, PatternScratch& scratch) const {
  words.spans.clear();
  if (!words.text.empty()) words.spans.push_back({0, words.text.size()});
  for (const PreTokenizerStep& step : steps_)
    std::visit(Overloaded{[&](const SplitText& how) { split_all(words, how, scratch); },
                          [&](const PrefixSpace&) {
                            rewrite(words, [&](size_t i, std::string_view word, std::string& out) {
                              if ((i > 0 || place != Place::goes_on) && !word.starts_with(' ')) out += ' ';
                              out += word;
                            });
                          },
                          [&](const Metaspace& how) { apply_metaspace(words, how, place); }},
               step);
}

bool PreTokenizer::adds_prefix() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const auto& step) {
    if (const auto* metaspace = std::get_if<Metaspace>(&step)) return metaspace->prefix != Metaspace::Prefix::never;
    return std::holds_alternative<PrefixSpace>(step);
  });
}

}  // namespace lamina
