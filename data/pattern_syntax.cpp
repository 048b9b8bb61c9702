#include "data/pattern_syntax.h"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "core/base/error.h"

namespace lamina {
namespace {

constexpr const char* other_than_white_space =
    R"(\x{00}-\x{08}\x{0E}-\x{1F}\x{21}-\x{84}\x{86}-\x{9F}\x{A1}-\x{167F}\x{1681}-\x{1FFF}\x{200B}-\x{2027}\x{202A}-\x{202E})"
    R"(\x{2030}-\x{205E}\x{2060}-\x{2FFF}\x{3001}-\x{10FFFF})";
constexpr const char* any_character = R"([\x{0}-\x{10FFFF}])";
constexpr int max_depth = 32;

// [members], and what stands in it as classes of their own.
struct CharacterClass {
  bool is_negated = false;
  std::string members;                 // of a flat PCRE2 class
  std::vector<std::string> nested;     // each matches one character
  std::vector<std::string> intersect;  // further operands of &&, each matching one character
};

std::string flat(const CharacterClass& c, bool negated) {
  std::string text = "[";
  if (negated) text += '^';
  return text + c.members + "]";
}

std::string to_pcre2(const CharacterClass& c) {
  if (c.nested.empty() && c.intersect.empty()) return flat(c, c.is_negated);
  std::string any_of = c.members.empty() ? "" : flat(c, false);
  for (const std::string& nested : c.nested) any_of += (any_of.empty() ? "" : "|") + nested;
  any_of = "(?:" + any_of + ")";
  std::string all;
  for (const std::string& other : c.intersect) all += "(?=" + other + ")";
  all += any_of;
  return c.is_negated ? "(?:(?!" + all + ")" + any_character + ")" : "(?:" + all + ")";
}

class Translator {
 public:
  Translator(std::string_view pattern, PatternDialect dialect, const std::string& origin)
      : pattern_(pattern), is_rust_(dialect == PatternDialect::rust), origin_(origin) {}

  std::string translate() {
    std::string out = alternatives(false, 0);
    if (at_ < pattern_.size()) fail("a closing bracket without an opening one");
    return out;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error("{}: pattern {}: at byte {}: {}; it is not known to mean the same here", origin_, pattern_, at_, what);
  }
  bool done() const { return at_ >= pattern_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  bool take(std::string_view text) {
    if (!pattern_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }

  // A whole character; ASCII ones that may mean something to PCRE2 are escaped.
  std::string take_character() {
    if (done()) fail("the pattern ends too early");
    const auto lead = static_cast<unsigned char>(pattern_[at_]);
    const size_t length = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    const std::string_view character = pattern_.substr(at_, length);
    at_ += character.size();
    return quoted(character);
  }
  static std::string quoted(std::string_view character) {
    const auto c = static_cast<unsigned char>(character.front());
    if (c < 0x20 || c == 0x7F) return fmt::format("\\x{{{:X}}}", c);
    const bool is_plain = c >= 0x80 || c == ' ' || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
    return is_plain ? std::string(character) : "\\" + std::string(character);
  }

  std::string alternatives(bool ignores_case, int depth) {
    if (depth > max_depth) fail("groups nested too deep");
    std::string out;
    std::string before;  // the character before, where case is ignored
    while (!done() && peek() != ')') {
      if (take("|")) {
        out += '|';
        before.clear();
        continue;
      }
      const size_t begin = at_;
      std::string atom = this->atom(ignores_case, depth);
      if (ignores_case) {
        check_folding(before, pattern_.substr(begin, at_ - begin));
        before = std::string(pattern_.substr(begin, at_ - begin));
      }
      out += quantified(std::move(atom));
    }
    return out;
  }

  // There Oniguruma takes one character for two, as the German sharp s for "ss".
  void check_folding(const std::string& before, std::string_view now) const {
    if (is_rust_) return;
    constexpr std::array<std::string_view, 5> pairs = {"ss", "ff", "fi", "fl", "st"};
    std::string both = before + std::string(now);
    std::transform(both.begin(), both.end(), both.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
    const bool is_foreign = std::any_of(now.begin(), now.end(), [](char c) { return (c & 0x80) != 0; });
    if (is_foreign || std::find(pairs.begin(), pairs.end(), both) != pairs.end())
      fail(fmt::format("\"{}\" where case is ignored", both));
  }

  std::string atom(bool ignores_case, int depth) {
    switch (peek()) {
      case '(':
        return group(ignores_case, depth);
      case '[':
        ++at_;
        return character_class(ignores_case, depth);
      case '.':
        ++at_;
        return "[^\\n]";
      case '$':  // Oniguruma: of a line
        ++at_;
        return is_rust_ ? "\\z" : "(?=\\n|\\z)";
      case '^':
        fail("^ outside of brackets");
      case '*':
      case '+':
      case '?':
        fail("a repetition of nothing");
      case '\\':
        return escape(ignores_case);
      default:
        return take_character();
    }
  }

  std::string group(bool ignores_case, int depth) {
    std::string open;
    for (const char* known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"})
      if (open.empty() && take(known)) open = known;
    if (open.empty() && take("(?i:")) {
      open = "(?i:";
      ignores_case = true;
    }
    if (open.empty() && peek() == '(' && peek(1) == '?') fail(fmt::format("the group {}", pattern_.substr(at_, 4)));
    if (open.empty()) {
      ++at_;
      open = "(?:";
    }
    const std::string inside = alternatives(ignores_case, depth + 1);
    if (!take(")")) fail("a group that isn't closed");
    return open + inside + ")";
  }

  std::optional<std::string> braces() {
    size_t end = at_ + 1;
    while (end < pattern_.size() && (pattern_[end] == ',' || (pattern_[end] >= '0' && pattern_[end] <= '9'))) ++end;
    const std::string_view inside = pattern_.substr(at_ + 1, end - at_ - 1);
    if (peek() != '{' || end >= pattern_.size() || pattern_[end] != '}' || inside.empty() || inside == "," ||
        std::count(inside.begin(), inside.end(), ',') > 1)
      return std::nullopt;
    at_ = end + 1;
    return "{" + std::string(inside.front() == ',' ? "0" : "") + std::string(inside) + "}";
  }

  std::string quantified(std::string atom) {
    if (done()) return atom;
    std::string repeat;
    if (peek() == '*' || peek() == '+' || peek() == '?') {
      repeat = pattern_[at_++];
      if (peek() == '+' || peek() == '?') repeat += pattern_[at_++];
    } else if (const auto inside = braces()) {
      repeat = *inside;
      const bool is_exact = repeat.find(',') == std::string::npos;
      if (peek() == '?' && is_exact && !is_rust_) fail(fmt::format("{}?", repeat));
      if (peek() == '+' && !is_rust_) {  // no possessive one, but a repetition of the repetition
        ++at_;
        atom = "(?:" + atom + repeat + ")";
        repeat = "+";
      } else if (peek() == '+' || peek() == '?') {
        repeat += pattern_[at_++];
      }
    }
    if (!repeat.empty() && (peek() == '*' || peek() == '+' || peek() == '?')) fail("a repetition of a repetition");
    return atom + repeat;
  }

  // Behind the backslash: a single character, if it is one.
  std::optional<std::string> escaped_character() {
    const char c = peek();
    const auto one = [&](const char* text) {
      ++at_;
      return std::optional<std::string>(text);
    };
    switch (c) {
      case 'n':
        return one("\\x{A}");
      case 'r':
        return one("\\x{D}");
      case 't':
        return one("\\x{9}");
      case 'f':
        return one("\\x{C}");
      case 'v':
        return one("\\x{B}");
      case 'x':
      case 'u':
        return code_point();
      default:
        break;
    }
    if (static_cast<unsigned char>(c) >= 0x80 || (c > ' ' && !is_letter_or_digit(c))) return take_character();
    return std::nullopt;
  }
  static bool is_letter_or_digit(char c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z'); }

  std::string code_point() {
    const bool is_short = pattern_[at_++] == 'x';
    const bool has_braces = peek() == '{';
    size_t begin = at_ + (has_braces ? 1 : 0), end = begin;
    const auto is_digit = [](char c) { return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'f'); };
    while (end < pattern_.size() && end - begin < 8 && is_digit(pattern_[end])) {
      ++end;
      if (!has_braces && end - begin == (is_short ? 2u : 4u)) break;
    }
    const std::string digits(pattern_.substr(begin, end - begin));
    const bool is_whole = has_braces ? end < pattern_.size() && pattern_[end] == '}' && !digits.empty()
                                     : digits.size() == (is_short ? 2u : 4u);
    if (!is_whole) fail("a code point that isn't one");
    at_ = end + (has_braces ? 1 : 0);
    const unsigned long code = std::stoul(digits, nullptr, 16);
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) || (is_short && !has_braces && code >= 0x80))
      fail("a code point that isn't one");
    return fmt::format("\\x{{{:X}}}", code);
  }

  // \p{..}, from the p on.
  std::string property() {
    bool is_negated = pattern_[at_++] == 'P';
    std::string name;
    if (take("{")) {
      if (take("^")) is_negated = !is_negated;
      while (!done() && peek() != '}') name += pattern_[at_++];
      if (!take("}")) fail("a property that isn't closed");
    } else if (is_rust_ && !done()) {
      name = pattern_[at_++];
    }
    constexpr std::string_view major = "LMNPSZC", minor = "ultmondecpsifkuj";
    const bool is_category = !name.empty() && name.size() <= 2 && major.find(name[0]) != std::string_view::npos &&
                             (name.size() == 1 || minor.find(name[1]) != std::string_view::npos);
    const bool is_script =
        name.size() > 2 && name[0] >= 'A' && name[0] <= 'Z' &&
        std::all_of(name.begin(), name.end(), [](char c) { return c == '_' || ((c | 32) >= 'a' && (c | 32) <= 'z'); });
    if (!is_category && !is_script) fail(fmt::format("the property {}", name));
    return fmt::format("\\{}{{{}{}}}", is_negated ? 'P' : 'p', is_script ? "sc:" : "", name);
  }

  // A set of characters behind the backslash, as members of a class.
  std::optional<std::string> escaped_set(bool ignores_case) {
    switch (peek()) {
      case 's':
        ++at_;
        return white_space_members;
      case 'S':
        ++at_;
        return other_than_white_space;
      case 'd':
        ++at_;
        return "\\p{Nd}";
      case 'D':
        ++at_;
        return "\\P{Nd}";
      case 'w':
        ++at_;
        return word_members();
      case 'p':
      case 'P':
        if (ignores_case) fail("a property where case is ignored");
        return property();
      default:
        return std::nullopt;
    }
  }
  std::string word_members() const {
    return std::string("\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}") + (is_rust_ ? "\\x{200C}\\x{200D}" : "");
  }

  std::string escape(bool ignores_case) {
    ++at_;
    if (done()) fail("a backslash at the end");
    if (take("W")) return "[^" + word_members() + "]";
    if (take("A")) return "\\A";
    if (take("z")) return "\\z";
    const size_t begin = at_;
    if (auto set = escaped_set(ignores_case))
      return pattern_[begin] == 'p' || pattern_[begin] == 'P' ? *set : "[" + *set + "]";
    if (auto character = escaped_character()) return *character;
    fail(fmt::format("\\{}", peek()));
  }

  // Behind the opening bracket, up to the closing one.
  std::string character_class(bool ignores_case, int depth) {
    if (depth > max_depth) fail("classes nested too deep");
    CharacterClass out;
    out.is_negated = take("^");
    if (peek() == ']') fail("an empty class");
    while (!take("]")) {
      if (done()) fail("a class that isn't closed");
      if (take("&&")) {
        CharacterClass rest = operand(ignores_case, depth);
        out.intersect.push_back(to_pcre2(rest));
        continue;
      }
      if (!out.intersect.empty()) fail("a class behind &&");
      member(out, ignores_case, depth);
    }
    if (out.members.empty() && out.nested.empty()) fail("an empty class");
    return to_pcre2(out);
  }

  // What && takes: everything up to the next one or the end.
  CharacterClass operand(bool ignores_case, int depth) {
    CharacterClass out;
    while (peek() != ']' && !pattern_.substr(at_).starts_with("&&")) {
      if (done()) fail("a class that isn't closed");
      member(out, ignores_case, depth);
    }
    if (out.members.empty() && out.nested.empty()) fail("an empty class");
    return out;
  }

  void refuse_set_operation() const {
    const std::string_view rest = pattern_.substr(at_);
    if (is_rust_ && (rest.starts_with("--") || rest.starts_with("~~"))) fail("a set operation");
  }

  void member(CharacterClass& out, bool ignores_case, int depth) {
    if (pattern_.substr(at_).starts_with("[:")) fail("[:");
    refuse_set_operation();
    if (take("[")) {
      out.nested.push_back(character_class(ignores_case, depth + 1));
      return;
    }
    std::string low;
    if (take("\\")) {
      if (auto set = escaped_set(ignores_case)) {
        out.members += *set;
        return;
      }
      auto character = escaped_character();
      if (!character) fail(fmt::format("\\{} in a class", peek()));
      low = *character;
    } else {
      low = take_character();
    }
    refuse_set_operation();
    const bool is_range = peek() == '-' && peek(1) != ']' && at_ + 1 < pattern_.size();
    if (!is_range) {
      out.members += low;
      return;
    }
    if (peek(1) == '[' || low == "\\-") fail("a range that isn't one");
    ++at_;
    std::string high;
    if (take("\\")) {
      auto character = escaped_character();
      if (!character) fail("a range that isn't one");
      high = *character;
    } else {
      high = take_character();
    }
    out.members += low + "-" + high;
  }

  std::string_view pattern_;
  bool is_rust_;
  const std::string& origin_;
  size_t at_ = 0;
};

}  // namespace

std::string pcre2_pattern(std::string_view pattern, PatternDialect dialect, const std::string& origin) {
  return Translator(pattern, dialect, origin).translate();
}

}  // namespace lamina
