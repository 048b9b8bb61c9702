#include "data/tiktoken.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_set>
#include <utility>

#include "core/base/error.h"

namespace lamina {
namespace {

constexpr const char* cl100k_pattern =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s)";
constexpr const char* o200k_pattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kimi_pattern =
    R"([\p{Han}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Nothing where the text is no base64.
std::optional<std::string> decode_base64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::string bytes;
  for (size_t at = 0; at < text.size(); at += 4) {
    uint32_t bits = 0;
    for (size_t i = at; i < at + 4; ++i) {
      const char c = text[i];
      uint32_t value = 0;
      if (c >= 'A' && c <= 'Z')
        value = static_cast<uint32_t>(c - 'A');
      else if (c >= 'a' && c <= 'z')
        value = static_cast<uint32_t>(c - 'a') + 26;
      else if (c >= '0' && c <= '9')
        value = static_cast<uint32_t>(c - '0') + 52;
      else if (c == '+' || c == '/')
        value = c == '+' ? 62 : 63;
      else if (c != '=' || i < text.size() - padding)
        return std::nullopt;
      bits = bits << 6 | value;
    }
    for (const int shift : {16, 8, 0}) bytes += static_cast<char>(bits >> shift & 0xFF);
  }
  bytes.resize(bytes.size() - padding);
  return bytes;
}

}  // namespace

std::optional<TiktokenPreset> tiktoken_preset(std::string_view name) {
  if (name == "cl100k")
    return TiktokenPreset{"cl100k",
                          cl100k_pattern,
                          {{"<|endoftext|>", 100257},
                           {"<|fim_prefix|>", 100258},
                           {"<|fim_middle|>", 100259},
                           {"<|fim_suffix|>", 100260},
                           {"<|endofprompt|>", 100276}},
                          0,
                          "<|endoftext|>"};
  if (name == "o200k")
    return TiktokenPreset{
        "o200k", o200k_pattern, {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}, 0, "<|endoftext|>"};
  if (name == "kimi") return TiktokenPreset{"kimi", kimi_pattern, {}, 256, ""};
  return std::nullopt;
}

std::vector<std::string> parse_tiktoken(std::string_view file, const std::string& origin) {
  std::vector<std::string> tokens;
  std::unordered_set<std::string> seen;
  for (size_t line = 1; !file.empty(); ++line) {
    const size_t end = std::min(file.find('\n'), file.size());
    std::string_view text = file.substr(0, end);
    file.remove_prefix(std::min(end + 1, file.size()));
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (text.empty()) continue;
    const size_t space = text.find(' ');
    const auto bytes = decode_base64(text.substr(0, space));
    uint64_t rank = 0;
    const std::string_view number = space == std::string_view::npos ? "" : text.substr(space + 1);
    const auto [stop, error] = std::from_chars(number.data(), number.data() + number.size(), rank);
    if (!bytes || number.empty() || error != std::errc() || stop != number.data() + number.size())
      throw Error("{}: line {}: expected a token in base64, a space and its rank, as tiktoken's files have them",
                  origin, line);
    if (rank != tokens.size())
      throw Error("{}: line {}: found rank {}, expected {}: ranks go up from 0", origin, line, rank, tokens.size());
    if (!seen.insert(*bytes).second) throw Error("{}: line {}: found a token a second time", origin, line);
    tokens.push_back(*bytes);
  }
  if (tokens.empty()) throw Error("{}: found no tokens", origin);
  for (unsigned byte = 0; byte < 256; ++byte)
    if (!seen.contains(std::string(1, static_cast<char>(byte))))
      throw Error("{}: found no token for the byte 0x{:02X}, expected one for each byte", origin, byte);
  return tokens;
}

BpeTokenizerParts tiktoken_parts(std::string_view file, const TiktokenRules& rules, const std::string& origin) {
  const std::vector<std::string> tokens = parse_tiktoken(file, origin);
  BpeTokenizerParts out;
  out.texts = tokens;
  for (const auto& [name, id] : rules.special_tokens) {
    constexpr int32_t limit = 1 << 24;
    if (id < static_cast<int32_t>(tokens.size()) || id >= limit)
      throw Error("{}: special token {}: found id {}, expected one behind the file's {} tokens", origin, name, id,
                  tokens.size());
    out.texts.resize(std::max(out.texts.size(), static_cast<size_t>(id) + 1));
  }
  const auto end = rules.special_tokens.find(rules.end_of_document);
  if (end == rules.special_tokens.end())
    throw Error("{}: the end of a document: found \"{}\", expected one of the {} special tokens", origin,
                rules.end_of_document, rules.special_tokens.size());
  out.end_of_document = end->second;
  // Text between the matches has no tokens there.
  std::vector<PreTokenizerStep> steps;
  steps.emplace_back(SplitText{TextPattern(rules.pattern, PatternDialect::rust, origin), SplitBehavior::removed, true});
  out.pre_tokenizer = PreTokenizer(std::move(steps));

  Vocabulary vocabulary;
  vocabulary.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) vocabulary.emplace(tokens[id], static_cast<int32_t>(id));
  // Any two neighbours merge whose bytes together are a token; its rank decides.
  std::vector<BpeMerge> merges;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view token = tokens[id];
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = vocabulary.find(token.substr(0, cut)), right = vocabulary.find(token.substr(cut));
      if (left != vocabulary.end() && right != vocabulary.end())
        merges.push_back({left->second, right->second, static_cast<uint32_t>(id), static_cast<int32_t>(id)});
    }
  }
  BpeOptions options;
  options.letters_are_bytes = options.whole_words_first = true;
  out.bpe.emplace(std::move(vocabulary), merges, options);
  return out;
}

std::vector<BpeMerge> tiktoken_merges(const std::vector<std::string>& tokens) {
  std::unordered_map<std::string_view, int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) ids.emplace(tokens[id], static_cast<int32_t>(id));
  std::vector<BpeMerge> merges;
  for (size_t id = 0; id < tokens.size(); ++id) {
    std::vector<std::string_view> parts;
    for (size_t i = 0; i < tokens[id].size(); ++i) parts.push_back(std::string_view(tokens[id]).substr(i, 1));
    while (parts.size() > 2) {
      auto best = static_cast<int32_t>(id);
      size_t place = parts.size();
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto found = ids.find(std::string_view(parts[i].data(), parts[i].size() + parts[i + 1].size()));
        if (found == ids.end() || found->second >= best) continue;
        best = found->second;
        place = i;
      }
      if (place == parts.size()) break;
      parts[place] = std::string_view(parts[place].data(), parts[place].size() + parts[place + 1].size());
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
    if (parts.size() == 2)
      merges.push_back(
          {ids.at(parts[0]), ids.at(parts[1]), static_cast<uint32_t>(merges.size()), static_cast<int32_t>(id)});
  }
  return merges;
}

}  // namespace lamina
