// A compiled pattern with which a tokenizer cuts texts. Immutable; each thread that searches needs a PatternScratch of its own.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "data/pattern_syntax.h"

namespace lamina {

struct TextSpan {
  size_t begin = 0, end = 0;
  bool operator==(const TextSpan&) const = default;
};

// Memory of searches, for patterns of any number.
class PatternScratch {
 public:
  PatternScratch();
  ~PatternScratch();
  PatternScratch(PatternScratch&&) noexcept;
  PatternScratch& operator=(PatternScratch&&) noexcept;

 private:
  friend class TextPattern;
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

class TextPattern {
 public:
  // Throws Error for what is no pattern, or none that is understood; `origin` names the file and key.
  TextPattern(std::string_view pattern, PatternDialect dialect, const std::string& origin);
  static TextPattern literal(std::string_view text, const std::string& origin);

  // The first match at or after `from`, empty ones too. `text` is whole characters of UTF-8. Throws Error where the search needs more memory
  // than it may.
  bool find(std::string_view text, size_t from, PatternScratch& scratch, TextSpan& match) const;

 private:
  TextPattern(const std::string& pcre2, const std::string& origin);

  struct Code;
  std::shared_ptr<const Code> code_;
  std::string origin_;
};

}  // namespace lamina
