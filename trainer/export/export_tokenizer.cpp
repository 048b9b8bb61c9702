#include "trainer/export/export_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/base/error.h"
#include "data/byte_letters.h"
#include "data/foreign_tokenizer.h"
#include "trainer/export/export_foreign_tokenizer.h"
#include "trainer/export/export_tokenizer_json.h"
#include "trainer/export/sentencepiece_model.h"

namespace lamina {
namespace {

using PieceKind = SentencePieceModel::Kind;

constexpr std::string_view space = "\xe2\x96\x81";  // U+2581, for which a space stands in SentencePiece's pieces
constexpr const char* end_of_bytes = "<|end_of_document|>";

std::string configuration(const Special& end, const std::optional<Special>& unknown,
                          const std::optional<Special>& padding) {
  OrderedJson out;
  out["tokenizer_class"] = "PreTrainedTokenizerFast";
  out["bos_token"] = out["eos_token"] = end.text;
  if (unknown) out["unk_token"] = unknown->text;
  if (padding) out["pad_token"] = padding->text;
  out["clean_up_tokenization_spaces"] = false;
  out["split_special_tokens"] = true;  // a text that holds such a name is text
  out["padding_side"] = "left";
  return out.dump(2) + "\n";
}

OrderedJson spelling_of_bytes() {
  OrderedJson vocabulary = OrderedJson::object();
  for (int byte = 0; byte < 256; ++byte) vocabulary[letter_of_byte(static_cast<unsigned char>(byte))] = byte;
  return vocabulary;
}

TokenizerFiles files_of_bytes(const Tokenizer& tokenizer) {
  const Special end{end_of_bytes, tokenizer.end_of_document()};
  OrderedJson level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  OrderedJson out = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  out["added_tokens"] = OrderedJson::array({special_token(end)});
  out["normalizer"] = nullptr;
  out["pre_tokenizer"] = level;
  out["post_processor"] = begins_with(end);
  out["decoder"] = level;
  out["model"] = {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"byte_fallback", false},
                  {"continuing_subword_prefix", nullptr},
                  {"end_of_word_suffix", nullptr},
                  {"fuse_unk", false},
                  {"vocab", spelling_of_bytes()},
                  {"merges", OrderedJson::array()}};
  out["model"]["vocab"][end.text] = end.id;
  return {{{"tokenizer.json", out.dump() + "\n"}, {"tokenizer_config.json", configuration(end, {}, {})}}, ""};
}

// There the name of a piece for a byte, such as <0x0A>, or of a special one also stands for itself in a text, unless its letters are
// likelier. A letter that is no piece isn't; where no piece has it, a text may be split there without changing its tokens.
std::set<char> letters_to_split_at(const SentencePieceModel& model) {
  std::set<char> letters;
  for (const SentencePieceModel::Piece& piece : model.pieces)
    if (piece.kind != PieceKind::normal) letters.insert(piece.text.begin(), piece.text.end());
  for (const SentencePieceModel::Piece& piece : model.pieces)
    if (piece.kind == PieceKind::normal && piece.text.size() == 1) letters.erase(piece.text.front());
  return letters;
}

// What tokenizer.json can't say, or would say otherwise.
std::string reason_against_json(const SentencePieceModel& model) {
  if (model.algorithm != SentencePieceModel::Algorithm::bpe &&
      model.algorithm != SentencePieceModel::Algorithm::unigram)
    return "its algorithm is neither bpe nor unigram";
  if (model.has_character_map) return fmt::format("its normalizer {} replaces characters", model.normalizer);
  if (model.remove_extra_whitespaces) return "it removes whitespace";
  if (!model.escape_whitespaces || model.whitespace_is_suffix) return "its spaces are not at the beginning of pieces";
  const auto has_space = [](const SentencePieceModel::Piece& piece) {
    return piece.text.find(space) != std::string::npos;
  };
  if (std::none_of(model.pieces.begin(), model.pieces.end(), has_space)) return "it has no piece for the space";
  for (const SentencePieceModel::Piece& piece : model.pieces)
    if (piece.kind == PieceKind::user_defined || piece.kind == PieceKind::unused)
      return fmt::format("piece {} is user-defined or unused", piece.text);
  if (model.algorithm == SentencePieceModel::Algorithm::unigram)
    for (const char letter : letters_to_split_at(model)) {
      if (static_cast<unsigned char>(letter) >= 0x80) return "a special piece is not spelt in ASCII";
      for (const SentencePieceModel::Piece& piece : model.pieces)
        if (piece.kind == PieceKind::normal && piece.text.find(letter) != std::string::npos)
          return fmt::format("piece {} has a letter that is no piece", piece.text);
    }
  return "";
}

// A merge makes a piece out of two; the likeliest piece goes first.
OrderedJson merges_of(const SentencePieceModel& model) {
  std::unordered_map<std::string_view, float> scores;
  std::vector<const SentencePieceModel::Piece*> pieces;
  for (const SentencePieceModel::Piece& piece : model.pieces) {
    if (piece.kind != PieceKind::normal) continue;
    scores[piece.text] = piece.score;
    pieces.push_back(&piece);
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const auto* a, const auto* b) { return a->score > b->score; });
  OrderedJson merges = OrderedJson::array();
  for (const SentencePieceModel::Piece* piece : pieces) {
    const std::string_view text = piece->text;
    for (size_t cut = 1; cut < text.size(); ++cut)
      if (scores.contains(text.substr(0, cut)) && scores.contains(text.substr(cut)))
        merges.push_back({text.substr(0, cut), text.substr(cut)});
  }
  return merges;
}

OrderedJson bpe_of(const SentencePieceModel& model, const std::optional<Special>& unknown) {
  OrderedJson vocabulary = OrderedJson::object();
  for (size_t id = 0; id < model.pieces.size(); ++id) vocabulary[model.pieces[id].text] = id;
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unknown ? OrderedJson(unknown->text) : OrderedJson()},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", true},
          {"byte_fallback", model.byte_fallback},
          {"vocab", std::move(vocabulary)},
          {"merges", merges_of(model)}};
}

// Pieces that no text may become are unlikelier than any text.
OrderedJson unigram_of(const SentencePieceModel& model, const std::optional<Special>& unknown) {
  constexpr float never = -1e6f;
  OrderedJson vocabulary = OrderedJson::array();
  for (const SentencePieceModel::Piece& piece : model.pieces)
    vocabulary.push_back({piece.text, piece.kind == PieceKind::normal ? piece.score : never});
  return {{"type", "Unigram"},
          {"unk_id", unknown ? OrderedJson(unknown->id) : OrderedJson()},
          {"vocab", std::move(vocabulary)},
          {"byte_fallback", model.byte_fallback}};
}

OrderedJson replace(std::string_view what, std::string_view by) {
  return {{"type", "Replace"}, {"pattern", {{"String", what}}}, {"content", by}};
}

OrderedJson tokenizer_json(const SentencePieceModel& model, const std::vector<Special>& specials, const Special& end,
                           const std::optional<Special>& unknown) {
  OrderedJson out = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  out["added_tokens"] = OrderedJson::array();
  for (const Special& token : specials) out["added_tokens"].push_back(special_token(token));
  OrderedJson normalizers = OrderedJson::array(),
              decoders = OrderedJson::array({replace(space, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}});
  if (model.add_dummy_prefix) {
    normalizers.push_back({{"type", "Prepend"}, {"prepend", space}});
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  normalizers.push_back(replace(" ", space));
  out["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
  OrderedJson splits = OrderedJson::array();
  if (model.algorithm == SentencePieceModel::Algorithm::unigram)
    for (const char letter : letters_to_split_at(model))
      splits.push_back({{"type", "Split"},
                        {"pattern", {{"String", std::string(1, letter)}}},
                        {"behavior", "Isolated"},
                        {"invert", false}});
  out["pre_tokenizer"] =
      splits.empty() ? OrderedJson() : OrderedJson{{"type", "Sequence"}, {"pretokenizers", std::move(splits)}};
  out["post_processor"] = begins_with(end);
  out["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  out["model"] =
      model.algorithm == SentencePieceModel::Algorithm::bpe ? bpe_of(model, unknown) : unigram_of(model, unknown);
  return out;
}

TokenizerFiles files_of_sentencepiece(const Tokenizer& tokenizer) {
  TokenizerFiles files;
  const SentencePieceModel model = parse_sentencepiece_model(tokenizer.model());
  LAMINA_CHECK(static_cast<int64_t>(model.pieces.size()) == tokenizer.vocab_size(), "{} pieces", model.pieces.size());
  files.reason = reason_against_json(model);
  files.contents[files.reason.empty() ? sentencepiece_file : sentencepiece_file_alone] = tokenizer.model();
  if (!files.reason.empty()) return files;
  std::vector<Special> specials;
  std::optional<Special> unknown, padding;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const SentencePieceModel::Piece& piece = model.pieces[i];
    if (piece.kind != PieceKind::unknown && piece.kind != PieceKind::control) continue;
    specials.push_back({piece.text, static_cast<int64_t>(i)});
    if (piece.kind == PieceKind::unknown) unknown = specials.back();
    if (tokenizer.padding() == static_cast<int64_t>(i)) padding = specials.back();
  }
  const auto end_id = static_cast<size_t>(tokenizer.end_of_document());
  const Special end{model.pieces[end_id].text, tokenizer.end_of_document()};
  files.contents["tokenizer.json"] = tokenizer_json(model, specials, end, unknown).dump() + "\n";
  files.contents["tokenizer_config.json"] = configuration(end, unknown, padding);
  return files;
}

}  // namespace

TokenizerFiles tokenizer_files(const Tokenizer& tokenizer) {
  if (tokenizer.name() == "bytes") return files_of_bytes(tokenizer);
  if (tokenizer.name() == huggingface_name) return files_of_huggingface(tokenizer);
  if (tokenizer.name() == tiktoken_name) return files_of_tiktoken(tokenizer);
  return files_of_sentencepiece(tokenizer);
}

}  // namespace lamina
