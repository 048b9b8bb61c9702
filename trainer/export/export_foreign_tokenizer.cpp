#include "trainer/export/export_foreign_tokenizer.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/byte_letters.h"
#include "data/foreign_tokenizer.h"
#include "trainer/export/export_tokenizer_json.h"

namespace lamina {
namespace {

using nlohmann::json;

// What another class, of other files or of code, would make of the folder is not this tokenizer.
std::string configuration(const ForeignModel& model, const json& more) {
  json out = model.configuration.empty() ? json::object() : json::parse(model.configuration);
  for (const char* key :
       {"auto_map", "tokenizer_file", "vocab_file", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy"})
    out.erase(key);
  out["tokenizer_class"] = "PreTrainedTokenizerFast";
  out["eos_token"] = model.end_of_document;
  out["clean_up_tokenization_spaces"] = false;
  out["split_special_tokens"] = true;
  out.update(more);
  return out.dump(2) + "\n";
}

// Oniguruma's words for a pattern of Rust's; empty where it has none that are sure.
std::string oniguruma_pattern(const std::string& pattern) {
  if (pattern == tiktoken_preset("cl100k")->pattern)  // nothing follows {1,3}+ that it could give back to
    return R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s)";
  return pattern.find("}+") == std::string::npos && pattern.find('$') == std::string::npos ? pattern : "";
}

json tokenizer_json(const ForeignModel& model, const std::string& pattern) {
  const std::vector<std::string> tokens = parse_tiktoken(model.file, tiktoken_name);
  json vocabulary = json::object(), merges = json::array(), added = json::array();
  std::vector<std::string> words;
  for (const std::string& token : tokens) {
    std::string word;
    for (const char byte : token) word += letter_of_byte(static_cast<unsigned char>(byte));
    vocabulary[word] = words.size();
    words.push_back(std::move(word));
  }
  for (const BpeMerge& merge : tiktoken_merges(tokens))
    merges.push_back({words[static_cast<size_t>(merge.left)], words[static_cast<size_t>(merge.right)]});
  std::map<int64_t, std::string> names;
  for (const auto& [name, id] : model.rules.special_tokens) names[id] = name;
  // The format knows no gaps between ids.
  const auto convert = [](const OrderedJson& value) { return json::parse(value.dump()); };
  for (int64_t id = static_cast<int64_t>(tokens.size()); id <= names.rbegin()->first; ++id)
    added.push_back(convert(special_token({names.contains(id) ? names.at(id) : fmt::format("<|unused_{}|>", id), id})));
  const json level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Removed"}, {"invert", true}};
  const Special end{model.end_of_document, model.rules.special_tokens.at(model.end_of_document)};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", std::move(added)},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, level}}}},
          {"post_processor", convert(begins_with(end))},
          {"decoder", level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", true},
            {"vocab", std::move(vocabulary)},
            {"merges", std::move(merges)}}}};
}

}  // namespace

TokenizerFiles files_of_huggingface(const Tokenizer& tokenizer) {
  const ForeignModel model = read_foreign_model(tokenizer.model(), huggingface_name);
  return {
      {{"tokenizer.json", std::string(model.file)}, {"tokenizer_config.json", configuration(model, json::object())}},
      ""};
}

TokenizerFiles files_of_tiktoken(const Tokenizer& tokenizer) {
  const ForeignModel model = read_foreign_model(tokenizer.model(), tiktoken_name);
  json decoder = json::object();
  for (const auto& [name, id] : model.rules.special_tokens) {
    json token = json::parse(special_token({name, id}).dump());
    token.erase("id");
    decoder[std::to_string(id)] = token;
  }
  json more = {{"pattern", model.rules.pattern}, {"added_tokens_decoder", decoder}};
  more["bos_token"] = model.end_of_document;
  if (!model.padding.empty()) more["pad_token"] = model.padding;
  TokenizerFiles files;
  const std::string pattern = oniguruma_pattern(model.rules.pattern);
  if (pattern.empty()) files.reason = "its pattern has {n,m}+ or $, which tokenizer.json's reads otherwise";
  files.contents[pattern.empty() ? tiktoken_file_alone : tiktoken_file] = std::string(model.file);
  files.contents["tokenizer_config.json"] = configuration(model, more);
  if (!pattern.empty()) files.contents["tokenizer.json"] = tokenizer_json(model, pattern).dump() + "\n";
  return files;
}

}  // namespace lamina
