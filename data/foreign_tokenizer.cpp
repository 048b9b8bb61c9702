#include "data/foreign_tokenizer.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <utility>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/io/file.h"
#include "data/bpe_tokenizer.h"
#include "data/json_node.h"
#include "data/tokenizer_json.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* configuration_name = "tokenizer_config.json";

// What lies next to the file; null where nothing does.
struct Configuration {
  json value;
  std::string origin;

  explicit Configuration(const fs::path& file) : origin((file.parent_path() / configuration_name).string()) {
    if (fs::exists(origin)) value = parse_json_object(io::read_file(origin), origin);
  }
  JsonNode operator[](const std::string& key) const {
    static const json nothing = json::object();
    return JsonNode(value.is_null() ? nothing : value, origin)[key];
  }
  // A token's name, alone or with its properties; empty where there is none.
  std::string token(const std::string& key) const {
    const JsonNode node = (*this)[key];
    if (node.is_null()) return "";
    return node.value().is_object() ? node["content"].text() : node.text();
  }
};

fs::path file_of(const std::string& path, const char* name) {
  return fs::is_directory(path) ? fs::path(path) / name : fs::path(path);
}

// DeepSeek's, with full-width bars and a low line of its own.
constexpr const char* deepseek_end =
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>";

std::string usual_end(const json& document) {
  std::string found;
  const auto list = document.find("added_tokens");
  if (list == document.end() || !list->is_array()) return "";
  for (const json& token : *list) {
    if (!token.is_object() || token.value("special", json(false)) != json(true)) continue;
    for (const char* usual : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", deepseek_end}) {
      if (token.value("content", json()) != json(usual)) continue;
      if (!found.empty()) return "";  // which of them?
      found = usual;
    }
  }
  return found;
}

[[noreturn]] void no_end(const std::string& file) {
  throw Error(
      "{}: does not say which token ends a document, expected eos_token in a {} next to it, or --end-of-document TOKEN",
      file, configuration_name);
}

std::string stored(const json& head, const std::string& file) {
  return head.dump() + "\n" + file;
}

SpecialTokens tokens_of(const std::vector<std::string>& options) {
  SpecialTokens out;
  for (const std::string& option : options) {
    const size_t equals = option.rfind('=');
    int32_t id = 0;
    const char* end = option.data() + option.size();
    const char* begin = equals == std::string::npos ? end : option.data() + equals + 1;
    const auto [stop, error] = std::from_chars(begin, end, id);
    if (begin == end || stop != end || error != std::errc() || id < 0 || equals == 0)
      throw Error("special token \"{}\": expected NAME=ID", option);
    out[option.substr(0, equals)] = id;
  }
  return out;
}

SpecialTokens tokens_of(const JsonNode& decoder) {
  SpecialTokens out;
  if (decoder.is_null()) return out;
  if (!decoder.value().is_object()) decoder.fail(decoder.found("an object"));
  for (const auto& [key, ignored] : decoder.value().items()) {
    int32_t id = 0;
    const auto [stop, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (key.empty() || stop != key.data() + key.size() || error != std::errc() || id < 0)
      decoder.fail(fmt::format("found {}, expected token ids", JsonNode::quoted(key)));
    out[decoder[key]["content"].text()] = id;
  }
  return out;
}

}  // namespace

std::string huggingface_model(const std::string& path, const TokenizerOptions& options) {
  const fs::path file = file_of(path, "tokenizer.json");
  std::string text = io::read_file(file);
  const Configuration configuration(file);
  const json document = parse_json_object(text, file.string());
  std::string end = options.end_of_document.empty() ? configuration.token("eos_token") : options.end_of_document;
  if (end.empty()) end = usual_end(document);
  if (end.empty()) no_end(file.string());
  json head = {
      {"end_of_document", end}, {"padding", configuration.token("pad_token")}, {"configuration", configuration.value}};
  // A padding token that is no special one pads nothing here.
  const auto is_padding = [&](const json& token) {
    return token.is_object() && token.value("content", json()) == head["padding"] &&
           token.value("special", json(false)) == json(true);
  };
  const auto list = document.find("added_tokens");
  if (list == document.end() || !list->is_array() || std::none_of(list->begin(), list->end(), is_padding))
    head["padding"] = "";
  return stored(head, text);
}

std::string tiktoken_model(const std::string& path, const TokenizerOptions& options) {
  const fs::path file = file_of(path, "tiktoken.model");
  const std::string text = io::read_file(file);
  const Configuration configuration(file);
  std::string pattern = options.pattern;
  if (pattern.empty() && !configuration["pattern"].is_null()) pattern = configuration["pattern"].text();
  if (pattern.empty())
    throw Error(
        "{}: does not say how a text is cut into words, expected --pattern cl100k, o200k or kimi, --pattern REGEX, or "
        "pattern in a {} next to "
        "it",
        file.string(), configuration_name);
  const auto preset = tiktoken_preset(pattern);
  SpecialTokens special = options.special_tokens.empty() ? tokens_of(configuration["added_tokens_decoder"])
                                                         : tokens_of(options.special_tokens);
  if (preset && special.empty()) special = preset->special_tokens;
  if (preset && preset->num_reserved > 0) {
    const auto begin = static_cast<int32_t>(parse_tiktoken(text, file.string()).size());
    for (int32_t id = begin; id < begin + preset->num_reserved; ++id)
      if (std::none_of(special.begin(), special.end(), [&](const auto& token) { return token.second == id; }))
        special[fmt::format("<|reserved_token_{}|>", id)] = id;
  }
  if (special.empty())
    throw Error(
        "{}: has no special tokens, expected --special-tokens NAME=ID .., or added_tokens_decoder in a {} next to it",
        file.string(), configuration_name);
  std::string end = options.end_of_document.empty() ? configuration.token("eos_token") : options.end_of_document;
  if (end.empty() && preset) end = preset->end_of_document;
  if (end.empty()) no_end(file.string());
  std::string padding = configuration.token("pad_token");
  if (!special.contains(padding)) padding.clear();
  return stored({{"end_of_document", end},
                 {"padding", padding},
                 {"pattern", preset ? preset->pattern : pattern},
                 {"special_tokens", special},
                 {"configuration", configuration.value}},
                text);
}

ForeignModel read_foreign_model(std::string_view model, const std::string& origin) {
  const size_t end = std::min(model.find('\n'), model.size());
  const json head = parse_json_object(model.substr(0, end), origin);
  const JsonNode root(head, origin);
  ForeignModel out;
  out.file = model.substr(std::min(end + 1, model.size()));
  out.end_of_document = root["end_of_document"].text();
  out.padding = root["padding"].text();
  if (const JsonNode configuration = root["configuration"]; !configuration.is_null())
    out.configuration = configuration.value().dump();
  if (const JsonNode pattern = root["pattern"]; !pattern.is_null()) {
    out.rules.pattern = pattern.text();
    out.rules.end_of_document = out.end_of_document;
    const JsonNode special = root["special_tokens"];
    if (!special.value().is_object()) special.fail(special.found("an object"));
    for (const auto& [name, id] : special.value().items()) out.rules.special_tokens[name] = special[name].token_id();
  }
  return out;
}

std::unique_ptr<Tokenizer> make_foreign_tokenizer(const std::string& name, const std::string& model,
                                                  const std::string& origin) {
  const ForeignModel parsed = read_foreign_model(model, origin);
  const bool is_tiktoken = name == tiktoken_name;
  if (is_tiktoken && parsed.rules.pattern.empty()) throw Error("{}: found no pattern of the tiktoken file", origin);
  BpeTokenizerParts parts = is_tiktoken
                                ? tiktoken_parts(parsed.file, parsed.rules, origin)
                                : parse_tokenizer_json(parsed.file, parsed.end_of_document, parsed.padding, origin);
  if (is_tiktoken && !parsed.padding.empty() && parsed.padding != parsed.end_of_document)
    parts.padding = parsed.rules.special_tokens.at(parsed.padding);
  parts.name = name;
  parts.model = model;
  const json chosen = {name, parsed.end_of_document, parsed.rules.pattern, parsed.rules.special_tokens};
  StreamingHash hash;
  const std::string head = chosen.dump() + "\n";
  hash.update(head.data(), head.size());
  hash.update(parsed.file.data(), parsed.file.size());
  parts.hash = hash_to_hex(hash.digest());
  return std::make_unique<BpeTokenizer>(std::move(parts));
}

}  // namespace lamina
