#include "data/tokenizer_json.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "data/byte_letters.h"
#include "data/json_node.h"

namespace lamina {
namespace {

constexpr const char* remedy =
    "only BPE tokenizers are read; for Unigram models take their SentencePiece file, sentencepiece:FILE";
constexpr int max_nesting = 8;  // of sequences in sequences

// GPT-2's, which ByteLevel cuts with.
constexpr const char* gpt2_pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

[[noreturn]] void refuse(const JsonNode& node, const std::string& expected, const std::string& why = "") {
  node["type"].fail(node["type"].found(expected) + (why.empty() ? "" : "; " + why));
}

TextPattern pattern_of(const JsonNode& node) {
  node.only({"String", "Regex"});
  if (const JsonNode literal = node["String"]; !literal.is_null()) {
    if (literal.text().empty()) literal.fail("found an empty text, expected one to look for");
    return TextPattern::literal(literal.text(), literal.place());
  }
  const JsonNode regex = node["Regex"];
  return {regex.text(), PatternDialect::oniguruma, regex.place()};
}

void read_normalizer(const JsonNode& node, std::vector<NormalizerStep>& steps, int depth = 0) {
  if (node.is_null()) return;
  const std::string type = node["type"].text();
  if (type == "Sequence" && depth < max_nesting) {
    node.only({"type", "normalizers"});
    for (const JsonNode& one : node["normalizers"].elements()) read_normalizer(one, steps, depth + 1);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    node.only({"type"});
    steps.emplace_back(UnicodeNormalization{type.back() == 'C', type.size() == 4});
  } else if (type == "Prepend") {
    node.only({"type", "prepend"});
    steps.emplace_back(PrependText{node["prepend"].text()});
  } else if (type == "Replace") {
    node.only({"type", "pattern", "content"});
    steps.emplace_back(ReplaceText{pattern_of(node["pattern"]), node["content"].text()});
  } else {
    refuse(node, "NFC, NFD, NFKC, NFKD, Prepend, Replace or Sequence");
  }
}

SplitBehavior behavior_of(const JsonNode& node) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> all{
      {{"Removed", SplitBehavior::removed},
       {"Isolated", SplitBehavior::isolated},
       {"Contiguous", SplitBehavior::contiguous},
       {"MergedWithPrevious", SplitBehavior::merged_with_previous},
       {"MergedWithNext", SplitBehavior::merged_with_next}}};
  const std::string name = node.text();
  for (const auto& [known, behavior] : all)
    if (name == known) return behavior;
  node.fail(node.found("Removed, Isolated, Contiguous, MergedWithPrevious or MergedWithNext"));
}

Metaspace read_metaspace(const JsonNode& node) {
  node.only({"type", "replacement", "prepend_scheme", "add_prefix_space", "split", "str_rep"});
  Metaspace out;
  out.replacement = node["replacement"].text();
  if (out.replacement.empty()) node["replacement"].fail("found an empty text, expected a character");
  const JsonNode scheme = node["prepend_scheme"];
  const std::string prefix = scheme.is_null() ? "always" : scheme.text();
  if (prefix != "always" && prefix != "first" && prefix != "never") scheme.fail(scheme.found("always, first or never"));
  out.prefix = prefix == "always"  ? Metaspace::Prefix::always
               : prefix == "first" ? Metaspace::Prefix::first
                                   : Metaspace::Prefix::never;
  if (const JsonNode adds = node["add_prefix_space"]; !adds.is_null() && !adds.boolean()) {
    if (!scheme.is_null() && prefix != "never")
      adds.fail("found false beside prepend_scheme, expected prepend_scheme: never");
    out.prefix = Metaspace::Prefix::never;
  }
  out.splits = node["split"].boolean(true);
  return out;
}

struct PreTokenizing {
  std::vector<PreTokenizerStep> steps;
  bool is_byte_level = false;
};

void read_pre_tokenizer(const JsonNode& node, PreTokenizing& out, int depth = 0) {
  if (node.is_null()) return;
  if (out.is_byte_level) node.fail("found another step, expected ByteLevel to be the last one");
  const std::string type = node["type"].text();
  const auto matches = [&](const char* pattern, SplitBehavior behavior) {
    out.steps.emplace_back(SplitText{TextPattern(pattern, PatternDialect::oniguruma, node.place()), behavior, false});
  };
  if (type == "Sequence" && depth < max_nesting) {
    node.only({"type", "pretokenizers"});
    for (const JsonNode& one : node["pretokenizers"].elements()) read_pre_tokenizer(one, out, depth + 1);
  } else if (type == "Split") {
    node.only({"type", "pattern", "behavior", "invert"});
    out.steps.emplace_back(
        SplitText{pattern_of(node["pattern"]), behavior_of(node["behavior"]), node["invert"].boolean(false)});
  } else if (type == "Digits") {
    node.only({"type", "individual_digits"});
    matches("\\p{N}", node["individual_digits"].boolean(false) ? SplitBehavior::isolated : SplitBehavior::contiguous);
  } else if (type == "Punctuation") {
    node.only({"type", "behavior"});
    matches(R"([!-/:-@\[-`{-~\p{P}])",
            node["behavior"].is_null() ? SplitBehavior::isolated : behavior_of(node["behavior"]));
  } else if (type == "Metaspace") {
    out.steps.emplace_back(read_metaspace(node));
  } else if (type == "ByteLevel") {
    node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    if (node["add_prefix_space"].boolean(true)) out.steps.emplace_back(PrefixSpace{});
    if (node["use_regex"].boolean(true)) matches(gpt2_pattern, SplitBehavior::isolated);
    out.is_byte_level = true;
  } else {
    refuse(node, "ByteLevel, Split, Digits, Punctuation, Metaspace or Sequence");
  }
}

// How tokens of characters become text again.
struct Decoding {
  std::vector<std::pair<std::string, std::string>> replaced;
  bool has_bytes = false;
  bool drops_first_space = false;
};

void read_decoder(const JsonNode& node, Decoding& out, int depth = 0) {
  if (node.is_null()) node.fail("found none, expected one that puts spaces back, such as Metaspace");
  const std::string type = node["type"].text();
  if (type == "Sequence" && depth < max_nesting) {
    node.only({"type", "decoders"});
    for (const JsonNode& one : node["decoders"].elements()) read_decoder(one, out, depth + 1);
  } else if (type == "Replace") {
    node.only({"type", "pattern", "content"});
    node["pattern"].only({"String"});
    out.replaced.emplace_back(node["pattern"]["String"].text(), node["content"].text());
    if (out.replaced.back().first.empty()) node["pattern"].fail("found an empty text, expected one to look for");
  } else if (type == "Metaspace") {
    const Metaspace metaspace = read_metaspace(node);
    out.replaced.emplace_back(metaspace.replacement, " ");
    out.drops_first_space = metaspace.prefix != Metaspace::Prefix::never;
  } else if (type == "ByteFallback") {
    node.only({"type"});
    out.has_bytes = true;
  } else if (type == "Fuse") {
    node.only({"type"});
  } else if (type == "Strip") {
    node.only({"type", "content", "start", "stop"});
    const bool is_known = node["content"].value() == " " && node["start"].value() == 1 && node["stop"].value() == 0;
    if (!is_known) node.fail("found another Strip, expected content \" \", start 1 and stop 0");
    out.drops_first_space = true;
  } else {
    refuse(node, "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip or Sequence");
  }
}

struct Model {
  Vocabulary vocabulary;  // by the file's spelling
  std::vector<BpeMerge> merges;
  BpeOptions options;
};

std::pair<std::string, std::string> merge_of(const JsonNode& node) {
  if (node.value().is_array()) {
    const auto both = node.elements();
    if (both.size() != 2) node.fail(fmt::format("found {} tokens, expected the two that merge", both.size()));
    return {both[0].text(), both[1].text()};
  }
  const std::string text = node.text();
  const size_t cut = text.find(' ');
  if (cut == std::string::npos || text.find(' ', cut + 1) != std::string::npos)
    node.fail(node.found("two tokens with a space between them"));
  return {text.substr(0, cut), text.substr(cut + 1)};
}

Model read_model(const JsonNode& node) {
  if (node.is_null()) node.fail("not found, expected the tokenizer's model");
  const JsonNode type = node["type"];  // absent in old files of BPE
  if (!type.is_null() && type.text() != "BPE") refuse(node, "BPE", remedy);
  if (type.is_null() && node["merges"].is_null())
    node.fail(fmt::format("no merges found, expected those of BPE; {}", remedy));
  node.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
             "byte_fallback", "ignore_merges", "vocab", "merges"});
  Model out;
  if (const JsonNode dropout = node["dropout"]; !dropout.is_null() && dropout.value() != 0)
    dropout.fail(dropout.found("null: the same text has the same tokens here"));
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const JsonNode text = node[affix]; !text.is_null() && !text.text().empty()) text.fail(text.found("null"));
  out.options.fuse_unknown = node["fuse_unk"].boolean(false);
  out.options.byte_fallback = node["byte_fallback"].boolean(false);
  out.options.whole_words_first = node["ignore_merges"].boolean(false);

  const JsonNode vocabulary = node["vocab"];
  if (!vocabulary.value().is_object()) vocabulary.fail(vocabulary.found("an object"));
  if (vocabulary.value().empty()) vocabulary.fail("found no tokens");
  std::set<int32_t> ids;
  for (const auto& [word, id] : vocabulary.value().items()) {
    const JsonNode entry = vocabulary.child("." + JsonNode::quoted(word), id);
    if (!ids.insert(entry.token_id()).second)
      entry.fail(fmt::format("found the id {} of another token", entry.token_id()));
    out.vocabulary.emplace(word, entry.token_id());
  }
  const auto id_of = [&](const JsonNode& where, const std::string& word) {
    const auto found = out.vocabulary.find(word);
    if (found == out.vocabulary.end())
      where.fail(fmt::format("found {}, expected a token of model.vocab", JsonNode::quoted(word)));
    return found->second;
  };
  if (const JsonNode unknown = node["unk_token"]; !unknown.is_null())
    out.options.unknown = id_of(unknown, unknown.text());
  const JsonNode merges = node["merges"];
  if (!merges.value().is_array()) merges.fail(merges.found("a list"));
  uint32_t rank = 0;
  for (const auto& merge : merges.value()) {
    const JsonNode entry = merges.child(fmt::format("[{}]", rank), merge);
    if (!(merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version"))) {
      const auto [left, right] = merge_of(entry);
      out.merges.push_back({id_of(entry, left), id_of(entry, right), rank, id_of(entry, left + right)});
    }
    ++rank;
  }
  return out;
}

// Those that the vocabulary lacks have the ids after it, one after the other, as the library gives them whatever the file says.
std::vector<AddedToken> read_added_tokens(const JsonNode& list, const Vocabulary& vocabulary) {
  std::vector<AddedToken> out;
  if (list.is_null()) return out;
  int32_t last = -1;
  std::set<std::string> names;
  for (const JsonNode& node : list.elements()) {
    node.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token;
    token.id = node["id"].token_id();
    token.content = node["content"].text();
    token.single_word = node["single_word"].boolean(false);
    token.lstrip = node["lstrip"].boolean(false);
    token.rstrip = node["rstrip"].boolean(false);
    token.special = node["special"].boolean(false);
    token.normalized = node["normalized"].boolean(!token.special);
    if (token.content.empty()) node["content"].fail("found an empty text, expected the token's name");
    if (!names.insert(token.content).second) node["content"].fail(node["content"].found("names that differ"));
    const auto found = vocabulary.find(token.content);
    const auto size = static_cast<int32_t>(vocabulary.size());
    const int32_t expected = found != vocabulary.end() ? found->second : last >= size ? last + 1 : size;
    if (token.id != expected)
      node["id"].fail(fmt::format("found {} for {}, expected {}, which `tokenizers` gives it", token.id,
                                  JsonNode::quoted(token.content), expected));
    last = std::max(last, token.id);
    out.push_back(std::move(token));
  }
  return out;
}

void read_post_processor(const JsonNode& node, const std::vector<AddedToken>& added, BpeTokenizerParts& out,
                         bool& has_template, int depth = 0) {
  if (node.is_null()) return;
  const std::string type = node["type"].text();
  if (type == "Sequence" && depth < max_nesting) {
    node.only({"type", "processors"});
    for (const JsonNode& one : node["processors"].elements())
      read_post_processor(one, added, out, has_template, depth + 1);
    return;
  }
  if (type == "ByteLevel")
    return node.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});  // of places, not of tokens
  if (type != "TemplateProcessing") refuse(node, "TemplateProcessing, ByteLevel or Sequence");
  node.only({"type", "single", "pair", "special_tokens"});
  if (std::exchange(has_template, true)) node.fail("found a second template, expected one");
  std::vector<int32_t> end;
  bool has_text = false;
  for (const JsonNode& piece : node["single"].elements()) {
    piece.only({"SpecialToken", "Sequence"});
    if (!piece["Sequence"].is_null()) {
      if (piece["Sequence"]["id"].text() != "A" || std::exchange(has_text, true))
        piece.fail("expected the text A once");
      continue;
    }
    const JsonNode special = node["special_tokens"][piece["SpecialToken"]["id"].text()];
    if (special.is_null()) piece.fail("found a token that isn't one of special_tokens");
    for (const JsonNode& id : special["ids"].elements()) {
      const auto is_it = [&](const AddedToken& token) { return token.id == id.token_id() && token.special; };
      if (std::none_of(added.begin(), added.end(), is_it)) id.fail(id.found("the id of a special added token"));
      (has_text ? end : out.begin).push_back(id.token_id());
    }
  }
  if (!has_text) node["single"].fail("found no text A");
  if (!end.empty() && end != std::vector<int32_t>{out.end_of_document})
    node["single"].fail(fmt::format("found token {} after a text, expected none but {}, which ends documents",
                                    end.front(), out.end_of_document));
}

int32_t special_id(const std::vector<AddedToken>& added, const std::string& name, const std::string& origin) {
  for (const AddedToken& token : added)
    if (token.content == name) {
      if (!token.special)
        throw Error("{}: {} can't end a document: it is no special token, so texts may contain it", origin, name);
      return token.id;
    }
  throw Error("{}: found no special token {} among added_tokens, expected the one that ends documents", origin,
              JsonNode::quoted(name));
}

std::optional<std::string> byte_of_name(const std::string& word) {
  unsigned byte = 0;
  if (word.size() != 6 || !word.starts_with("<0x") || word.back() != '>') return std::nullopt;
  const auto [end, error] = std::from_chars(word.data() + 3, word.data() + 5, byte, 16);
  if (error != std::errc() || end != word.data() + 5) return std::nullopt;
  return std::string(1, static_cast<char>(byte));
}

std::string text_of_word(std::string word, const Decoding& decoding) {
  if (decoding.has_bytes)
    if (auto byte = byte_of_name(word)) return *byte;
  for (const auto& [what, by] : decoding.replaced)
    for (size_t at = 0; (at = word.find(what, at)) != std::string::npos; at += by.size())
      word.replace(at, what.size(), by);
  return word;
}

}  // namespace

BpeTokenizerParts parse_tokenizer_json(std::string_view text, const std::string& end_of_document,
                                       const std::string& padding, const std::string& origin) {
  const nlohmann::json document = parse_json_object(text, origin);
  const JsonNode root(document, origin);
  root.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
             "decoder", "model"});
  if (root["version"].value() != "1.0") root["version"].fail(root["version"].found("\"1.0\""));
  for (const char* key : {"truncation", "padding"})
    if (!root[key].is_null()) root[key].fail("found one, expected null: a document keeps its length");
  Model model = read_model(root["model"]);
  BpeTokenizerParts out;
  out.added = read_added_tokens(root["added_tokens"], model.vocabulary);
  out.end_of_document = special_id(out.added, end_of_document, origin);
  if (!padding.empty() && padding != end_of_document) out.padding = special_id(out.added, padding, origin);
  std::vector<NormalizerStep> normalizer;
  read_normalizer(root["normalizer"], normalizer);
  PreTokenizing pre_tokenizing;
  read_pre_tokenizer(root["pre_tokenizer"], pre_tokenizing);
  bool has_template = false;
  read_post_processor(root["post_processor"], out.added, out, has_template);
  out.normalizer = Normalizer(std::move(normalizer));
  out.pre_tokenizer = PreTokenizer(std::move(pre_tokenizing.steps));

  const bool is_byte_level = pre_tokenizing.is_byte_level;
  model.options.letters_are_bytes = is_byte_level;
  Decoding decoding;
  if (!is_byte_level) {
    read_decoder(root["decoder"], decoding);
    if (decoding.has_bytes != model.options.byte_fallback)
      root["decoder"].fail(fmt::format("found {} ByteFallback, expected the same as model.byte_fallback",
                                       decoding.has_bytes ? "a" : "no"));
  } else {
    const JsonNode decoder = root["decoder"];
    if (decoder.is_null() || decoder["type"].text() != "ByteLevel")
      decoder.fail("expected ByteLevel, as in pre_tokenizer");
    if (model.options.byte_fallback) root["model"]["byte_fallback"].fail("found true beside ByteLevel, expected false");
  }
  out.begins_with_space = is_byte_level ? out.pre_tokenizer.adds_prefix() : decoding.drops_first_space;

  int32_t last = 0;
  for (const auto& [word, id] : model.vocabulary) last = std::max(last, id);
  for (const AddedToken& token : out.added) last = std::max(last, token.id);
  out.texts.resize(static_cast<size_t>(last) + 1);
  Vocabulary words;
  for (auto& [word, id] : model.vocabulary) {
    std::string& token_text = out.texts[static_cast<size_t>(id)];
    if (!is_byte_level) {
      token_text = text_of_word(word, decoding);
      continue;
    }
    const auto bytes = bytes_of_letters(word);  // others stand for no text
    token_text = bytes.value_or(word);
    if (bytes) words.emplace(*bytes, id);
  }
  for (const AddedToken& token : out.added)
    out.texts[static_cast<size_t>(token.id)] = token.special ? "" : token.content;
  out.bpe.emplace(is_byte_level ? std::move(words) : std::move(model.vocabulary), model.merges, model.options);
  return out;
}

}  // namespace lamina
