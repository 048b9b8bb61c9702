// Regular expressions of other programs' tokenizers, rewritten for PCRE2.
#pragma once

#include <string>
#include <string_view>

namespace lamina {

// Whose reading of a pattern: `tokenizers` runs Oniguruma (its Ruby-like default syntax), `tiktoken` Rust's fancy-regex.
enum class PatternDialect { oniguruma, rust };

// A pattern for PCRE2 with UTF, UCP and a line feed as the only line break that matches the same texts. Where the programs differ (\s,
// \w, scripts, {1,3}+, $, classes within classes and their intersections) the meaning is spelt out; what has no equal is refused. Groups
// don't capture. Throws Error naming the pattern, the place and what was found; `origin` stands for the file and key.
std::string pcre2_pattern(std::string_view pattern, PatternDialect dialect, const std::string& origin);

// Any one of the characters that Unicode calls white space, as members of a PCRE2 class.
inline constexpr const char* white_space_members =
    R"(\x{09}-\x{0D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

}  // namespace lamina
