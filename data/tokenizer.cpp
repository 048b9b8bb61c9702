#include "data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/io/file.h"

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

  std::string decode(std::span<const int32_t> tokens) const override {
    std::string text;
    text.reserve(tokens.size());
    for (const int32_t token : tokens) {
      if (token < 0 || token > end_of_document()) unknown_id(token, vocab_size());
      if (token != end_of_document()) text.push_back(static_cast<char>(token));
    }
    return text;
  }

  int64_t vocab_size() const override { return 257; }
  int32_t end_of_document() const override { return 256; }
  int64_t num_bytes(int32_t token) const override { return token >= 0 && token < 256 ? 1 : 0; }
  const std::string& hash() const override { return hash_; }
  const std::string& name() const override { return name_; }
  const std::string& model() const override { return model_; }
  size_t safe_cut(std::string_view text) const override { return text.size(); }

 private:
  std::string name_ = "bytes";
  std::string model_;
  std::string hash_ = hash_to_hex(hash64(std::string_view("bytes")));
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string model, const std::string& origin) : model_(std::move(model)) {
    if (const auto status = processor_.LoadFromSerializedProto(model_); !status.ok())
      throw Error("{}: not a SentencePiece model: {}", origin, status.message());
    const int size = processor_.GetPieceSize();
    end_of_document_ = processor_.eos_id();
    if (end_of_document_ < 0 || end_of_document_ >= size)
      throw Error("{}: the SentencePiece model has no end-of-sentence piece, expected one to end documents with",
                  origin);
    constexpr std::string_view space = "\xe2\x96\x81";  // U+2581, one byte in the text
    for (int id = 0; id < size; ++id) {
      int64_t bytes = 0;
      if (processor_.IsByte(id)) {
        bytes = 1;
      } else if (!processor_.IsControl(id) && !processor_.IsUnused(id)) {
        const std::string& piece = processor_.IdToPiece(id);
        bytes = static_cast<int64_t>(piece.size());
        for (size_t at = piece.find(space); at != std::string::npos; at = piece.find(space, at + space.size()))
          bytes -= static_cast<int64_t>(space.size()) - 1;
      }
      num_bytes_.push_back(bytes);
    }
    hash_ = hash_to_hex(hash64(model_));
  }

  void encode(std::string_view text, std::vector<int32_t>& tokens) const override {
    std::vector<int> ids;
    if (const auto status = processor_.Encode(text, &ids); !status.ok())
      throw Error("SentencePiece can't encode {} bytes of text: {}", text.size(), status.message());
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }

  std::string decode(std::span<const int32_t> tokens) const override {
    for (const int32_t token : tokens)
      if (token < 0 || token >= vocab_size()) unknown_id(token, vocab_size());
    std::string text;
    if (const auto status = processor_.Decode(std::vector<int>(tokens.begin(), tokens.end()), &text); !status.ok())
      throw Error("SentencePiece can't decode {} tokens: {}", tokens.size(), status.message());
    return text;
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(num_bytes_.size()); }
  int32_t end_of_document() const override { return end_of_document_; }
  int64_t num_bytes(int32_t token) const override {
    return token >= 0 && token < vocab_size() ? num_bytes_[static_cast<size_t>(token)] : 0;
  }
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
  sentencepiece::SentencePieceProcessor processor_;
  std::string name_ = "sentencepiece";
  std::string model_;
  std::string hash_;
  std::vector<int64_t> num_bytes_;
  int32_t end_of_document_ = -1;
};

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& spec) {
  constexpr std::string_view prefix = "sentencepiece:";
  if (spec == "bytes") return std::make_unique<BytesTokenizer>();
  if (spec.size() > prefix.size() && spec.starts_with(prefix)) {
    const std::string file = spec.substr(prefix.size());
    return std::make_unique<SentencePieceTokenizer>(io::read_file(file), file);
  }
  throw Error("unknown tokenizer \"{}\", expected bytes or sentencepiece:FILE", spec);
}

std::unique_ptr<Tokenizer> make_stored_tokenizer(const std::string& name, const std::string& model,
                                                 const std::string& origin) {
  if (name == "bytes") return std::make_unique<BytesTokenizer>();
  if (name == "sentencepiece") return std::make_unique<SentencePieceTokenizer>(model, origin);
  throw Error("{}: unknown tokenizer \"{}\", expected bytes or sentencepiece", origin, name);
}

}  // namespace lamina
