#include "data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/io/file.h"
#include "data/foreign_tokenizer.h"

namespace lamina {

namespace {

[[noreturn]] void unknown_id(int32_t token, int64_t vocab_size) {
  throw Error("can't decode token id {}, expected 0 to {}", token, vocab_size - 1);
}

class BytesTokenizer final : public Tokenizer {
 public:
  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    const size_t begin = tokens.size();
    tokens.resize(begin + text.size());
    std::transform(text.begin(), text.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                   [](char c) { return static_cast<int32_t>(static_cast<unsigned char>(c)); });
  }

  std::string_view text_of(int32_t token, int32_t) const override {
    if (token < 0 || token > end_of_document()) unknown_id(token, vocab_size());
    return std::string_view(bytes_).substr(static_cast<size_t>(token), 1);
  }

  int64_t vocab_size() const override { return 257; }
  int32_t end_of_document() const override { return 256; }
  const std::string& hash() const override { return hash_; }
  const std::string& name() const override { return name_; }
  const std::string& model() const override { return model_; }
  size_t safe_cut(std::string_view text) const override { return text.size(); }

 private:
  static std::string all_bytes() {
    std::string bytes(256, '\0');
    std::iota(bytes.begin(), bytes.end(), '\0');
    return bytes;
  }

  std::string name_ = "bytes";
  std::string model_;
  std::string bytes_ = all_bytes();
  std::string hash_ = hash_to_hex(hash64(std::string_view("bytes")));
};

// Spaces are U+2581 in pieces.
constexpr std::string_view space = "\xe2\x96\x81";

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string model, const std::string& origin) : model_(std::move(model)) {
    load(model_, origin);
    end_of_document_ = processor_.eos_id();
    if (end_of_document_ < 0 || end_of_document_ >= processor_.GetPieceSize())
      throw Error("{}: the SentencePiece model has no end-of-sentence piece, expected one to end documents with",
                  origin);
    // Some models put a space before a text and take it away again; no piece of a text that was cut may get one of its own. Where runs of
    // spaces become one, the library's own way is kept.
    const bool trims = processor_.EncodeAsIds("a  a") == processor_.EncodeAsIds("a a");
    begins_with_space_ = processor_.EncodeAsPieces("a").front().starts_with(space);
    adds_space_ = begins_with_space_ && !trims;
    if (adds_space_)
      load(model_ + std::string("\x1a\x02\x18\0", 4), origin);  // normalizer_spec.add_dummy_prefix: false
    bool has_space = false;
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      const std::string& piece = processor_.IdToPiece(id);
      has_space = has_space || piece.find(space) != std::string::npos;
      texts_.push_back(text_of_piece(id, piece));
      if (processor_.IsByte(id) && texts_.back() == " ") space_byte_ = id;
    }
    if (has_space) space_byte_ = -1;
    hash_ = hash_to_hex(hash64(model_));
  }

  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    if (adds_space_ && !text.empty()) return encode_more(" " + std::string(text), tokens);
    encode_more(text, tokens);
  }

  // A model without a piece for the space would spell U+2581 in bytes, and so it would come back.
  void encode_more(std::string_view text, std::vector<int32_t>& tokens) const override {
    if (space_byte_ < 0) return encode_as_is(text, tokens);
    for (size_t at; (at = text.find(' ')) != std::string_view::npos; text.remove_prefix(at + 1)) {
      encode_as_is(text.substr(0, at), tokens);
      tokens.push_back(space_byte_);
    }
    encode_as_is(text, tokens);
  }

  std::string_view text_of(int32_t token, int32_t previous) const override {
    if (token < 0 || token >= vocab_size()) unknown_id(token, vocab_size());
    std::string_view text = texts_[static_cast<size_t>(token)];
    const bool begins = begins_with_space_ && previous == end_of_document_ && !processor_.IsUnknown(token);
    if (begins && text.starts_with(' ')) text.remove_prefix(1);
    return text;
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(texts_.size()); }
  int32_t end_of_document() const override { return end_of_document_; }
  std::optional<int32_t> padding() const override {
    const int id = processor_.pad_id();
    return id >= 0 && id < vocab_size() ? std::optional<int32_t>(id) : std::nullopt;
  }
  const std::string& hash() const override { return hash_; }
  const std::string& name() const override { return name_; }
  const std::string& model() const override { return model_; }

  // No piece reaches over a line break, and a space only begins one. A text without either is cut between two
  // characters: there the tokens of the uncut text may differ.
  size_t safe_cut(std::string_view text) const override {
    if (const size_t at = text.rfind('\n'); at != std::string_view::npos) return at + 1;
    for (size_t at = text.size(); (at = text.rfind(' ', at - 1)) != std::string_view::npos && at > 0;)
      if (text[at - 1] != ' ') return at;  // a run of spaces may be one piece
    size_t end = text.size();
    for (int i = 0; i < 4 && end > 1; ++i, --end) {
      const auto lead = static_cast<unsigned char>(text[end - 1]);
      const size_t length = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 0;
      if (length == 0) continue;  // inside a character: go on to its first byte
      const bool complete = end - 1 + length <= text.size();
      return complete || end == 1 ? end - 1 + length : end - 1;
    }
    return text.size();  // not UTF-8
  }

 private:
  void load(const std::string& model, const std::string& origin) {
    if (const auto status = processor_.LoadFromSerializedProto(model); !status.ok())
      throw Error("{}: not a SentencePiece model: {}", origin, status.message());
  }

  std::string text_of_piece(int id, std::string piece) const {
    if (processor_.IsControl(id)) return "";
    if (processor_.IsUnknown(id))
      return processor_.DecodeIds(std::vector<int>{id});  // " \u2047 " unless the model says otherwise
    if (processor_.IsByte(id)) return {static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16))};  // <0x41>
    for (size_t at = 0; (at = piece.find(space, at)) != std::string::npos; ++at) piece.replace(at, space.size(), " ");
    return piece;
  }

  void encode_as_is(std::string_view text, std::vector<int32_t>& tokens) const {
    std::vector<int> ids;
    if (const auto status = processor_.Encode(text, &ids); !status.ok())
      throw Error("SentencePiece can't encode {} bytes of text: {}", text.size(), status.message());
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }

  sentencepiece::SentencePieceProcessor processor_;
  std::string name_ = "sentencepiece";
  std::string model_;
  std::string hash_;
  std::vector<std::string> texts_;  // by token
  int32_t end_of_document_ = -1;
  int32_t space_byte_ = -1;         // what a space becomes where no piece has one
  bool begins_with_space_ = false;  // the text of a document's first token, without being part of the document
  bool adds_space_ = false;         // here, and not in the library
};

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  int32_t previous = end_of_document();
  for (const int32_t token : tokens) text += text_of(token, std::exchange(previous, token));
  return text;
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& spec, const TokenizerOptions& options) {
  constexpr const char* kinds = "bytes, sentencepiece:FILE, huggingface:FILE or tiktoken:FILE";
  const size_t colon = spec.find(':');
  const std::string kind = spec.substr(0, colon), file = colon == std::string::npos ? "" : spec.substr(colon + 1);
  const bool is_foreign = kind == huggingface_name || kind == tiktoken_name;
  if (spec != "bytes" && ((kind != "sentencepiece" && !is_foreign) || file.empty()))
    throw Error("unknown tokenizer \"{}\", expected {}", spec, kinds);
  if (!is_foreign && !options.end_of_document.empty())
    throw Error("{}: found an end-of-document token, {}; the tokenizer has its own", spec, options.end_of_document);
  if (kind != tiktoken_name && !(options.pattern.empty() && options.special_tokens.empty()))
    throw Error("{}: found a pattern or special tokens, expected them with tiktoken:FILE only", spec);
  if (kind == huggingface_name) return make_stored_tokenizer(kind, huggingface_model(file, options), file);
  if (kind == tiktoken_name) return make_stored_tokenizer(kind, tiktoken_model(file, options), file);
  if (kind == "bytes") return std::make_unique<BytesTokenizer>();
  return std::make_unique<SentencePieceTokenizer>(io::read_file(file), file);
}

std::unique_ptr<Tokenizer> make_stored_tokenizer(const std::string& name, const std::string& model,
                                                 const std::string& origin) {
  if (name == "bytes") return std::make_unique<BytesTokenizer>();
  if (name == "sentencepiece") return std::make_unique<SentencePieceTokenizer>(model, origin);
  if (name == huggingface_name || name == tiktoken_name) return make_foreign_tokenizer(name, model, origin);
  throw Error("{}: unknown tokenizer \"{}\", expected bytes, sentencepiece, huggingface or tiktoken", origin, name);
}

}  // namespace lamina
