// What a tokenizer.json does to a text before its model: a normalizer changes it, a pre-tokenizer cuts it into words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "data/text_pattern.h"

namespace lamina {

struct UnicodeNormalization {
  bool composes = true;        // NFC, NFKC; else NFD, NFKD
  bool is_compatible = false;  // NFKC, NFKD
};
struct PrependText {
  std::string text;  // before a text that isn't empty
};
struct ReplaceText {
  TextPattern pattern;
  std::string by;
};
using NormalizerStep = std::variant<UnicodeNormalization, PrependText, ReplaceText>;

class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  // In place. `prepends`: false for what goes on after a cut, which gets nothing in front.
  void normalize(std::string& text, bool prepends, PatternScratch& scratch) const;
  bool empty() const { return steps_.empty(); }
  bool prepends() const;

 private:
  std::vector<NormalizerStep> steps_;
};

// What becomes of the matches of a pattern; the names are those of `tokenizers`.
enum class SplitBehavior { removed, isolated, contiguous, merged_with_previous, merged_with_next };

struct SplitText {
  TextPattern pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool inverts = false;  // what is between the matches counts as one
};
struct PrefixSpace {};  // a space before each word that has none
struct Metaspace {
  enum class Prefix { never, first, always };
  std::string replacement;  // for the space
  Prefix prefix = Prefix::always;
  bool splits = true;  // before each
};
using PreTokenizerStep = std::variant<SplitText, PrefixSpace, Metaspace>;

class PreTokenizer {
 public:
  PreTokenizer() = default;
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  struct Words {
    std::string text;             // the words' text, where a step has changed it
    std::vector<TextSpan> spans;  // of `text`
    std::vector<TextSpan> next;   // scratch
    std::string next_text;
  };
  enum class Place { document_begin, section_begin, goes_on };

  // The words of words.text. `place`: of this text; what goes on after a cut gets no space in front.
  void split(Words& words, Place place, PatternScratch& scratch) const;
  bool adds_prefix() const;

 private:
  std::vector<PreTokenizerStep> steps_;
};

}  // namespace lamina
